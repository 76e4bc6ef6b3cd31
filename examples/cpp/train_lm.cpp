// Trains a small language model in nothing but C++: LibTorch, and Erlangen's optimizer.
//
//   prefix=$(python -c 'import erlangen; print(erlangen.cmake_prefix_path)')
//   cmake -S examples/cpp -B build/train_lm -DCMAKE_PREFIX_PATH="$prefix"
//   cmake --build build/train_lm
//   build/train_lm/train_lm
//   build/train_lm/train_lm --optimizer adamw      # or muon: the same start and batches
//
// Without pip: `cmake --install` Erlangen under a prefix, and give CMAKE_PREFIX_PATH that prefix
// and the directory of LibTorch. --help lists the options. The text is --data FILE..., or the
// Python standard library's sources; tokens are bytes. Ends in about a minute on two CPU cores.
//
//   train_lm --checkpoint run.pt                   # saves the run every 100 steps
//   train_lm --checkpoint run.pt --resume          # goes on after an interruption
//   train_lm --metrics run.jsonl                   # each step's, as examples/train_lm.py's
//
// On one machine a resumed run equals the uninterrupted one bit for bit (on CPU), as the
// fingerprint of the parameters in the last line shows.
#include <erlangen/erlangen.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "data.h"
#include "log.h"
#include "model.h"
#include "optimizers.h"
#include "options.h"

// FNV-1a: not for security, but two runs that differ in a bit differ here.
uint64_t fingerprint(const void* data, size_t size, uint64_t hash = 0xcbf29ce484222325) {
  for (size_t i = 0; i < size; ++i) {
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3;
  }
  return hash;
}

// Everything that makes up a run, and how it goes to a file and back.
class Run {
 public:
  explicit Run(const Options& o)
      : options_(o),
        device_(o.device),
        data_(o.data, o.batch_size, o.seq_len, o.seed),
        validation_(data_.validation(o.eval_batches)),
        metrics_(o.metrics) {
    torch::manual_seed(o.seed);
    model_ = LanguageModel(o.model);
    model_->to(device_);
    int64_t parameters = 0;
    for (const auto& parameter : model_->parameters()) parameters += parameter.numel();
    std::cout << data_.train_text().size() << " training and " << data_.validation_text().size()
              << " validation bytes, " << parameters << " parameters\n";
    optimizers_ = make_optimizers(model_, o);
    const std::string& text = data_.train_text().tokens();
    settings_ = settings(o) + "--data of hash " +
                std::to_string(fingerprint(text.data(), text.size())) + "\n";
    if (o.resume) {
      load();
    } else {
      metrics_.begin();
    }
  }

  void train() {
    std::vector<Schedule> schedules;
    for (auto& optimizer : optimizers_) schedules.emplace_back(*optimizer, options_, step_);
    const int64_t last =
        options_.stop_after ? std::min(options_.stop_after, options_.steps) : options_.steps;
    const ProgressLine progress;
    if (step_ == 0) {
      const Metrics start{.val_loss = evaluate()};
      metrics_.add(start);
      std::cout << "step 0  val_loss " << start.val_loss << std::endl;
    }
    while (step_ < last) {
      const auto start = std::chrono::steady_clock::now();
      Metrics line{.lr = optimizers_[0]->param_groups()[0].options().get_lr()};
      line.loss = update();
      for (auto& schedule : schedules) schedule.step();
      seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      line.step = ++step_;
      line.tokens = step_ * options_.batch_size * options_.seq_len;
      line.seconds = seconds_;
      if (step_ % options_.eval_every == 0 || step_ == options_.steps) {
        line.val_loss = evaluate();
        progress.clear();
        std::cout << "step " << step_ << "  loss " << line.loss << "  val_loss " << line.val_loss
                  << "  " << seconds_ / step_ << " s/step" << std::endl;
      }
      metrics_.add(line);
      progress.show(line, options_.steps, seconds_ / step_);
      const bool due = options_.checkpoint_every && step_ % options_.checkpoint_every == 0;
      if (!options_.checkpoint.empty() && (due || step_ == last)) save();
    }
    progress.clear();
    std::cout << "parameters " << std::hex << parameter_fingerprint() << std::dec << std::endl;
  }

 private:
  torch::Tensor loss_of(const Batch& batch) {
    const auto logits = model_(batch.input_ids.to(device_));
    return torch::cross_entropy_loss(logits.flatten(0, 1), batch.labels.to(device_).flatten());
  }

  // One optimizer step; returns the loss before it.
  double update() {
    for (auto& optimizer : optimizers_) optimizer->zero_grad();
    const auto loss = loss_of(data_.train(step_));
    const double value = loss.item<double>();
    if (!std::isfinite(value)) {
      throw std::runtime_error("the loss is not finite at step " + std::to_string(step_) +
                               ": lower --lr");
    }
    loss.backward();
    if (options_.max_grad_norm > 0) {
      torch::nn::utils::clip_grad_norm_(model_->parameters(), options_.max_grad_norm);
    }
    for (auto& optimizer : optimizers_) optimizer->step();
    return value;
  }

  double evaluate() {
    const torch::NoGradGuard no_grad;
    model_->eval();
    double sum = 0;
    int64_t tokens = 0;
    for (const Batch& batch : validation_) {
      sum += loss_of(batch).item<double>() * batch.labels.numel();
      tokens += batch.labels.numel();
    }
    model_->train();
    return sum / tokens;
  }

  uint64_t parameter_fingerprint() const {
    uint64_t hash = fingerprint(nullptr, 0);
    for (const auto& parameter : model_->parameters()) {
      const auto values = parameter.detach().cpu().contiguous();
      hash = fingerprint(values.data_ptr(), values.nbytes(), hash);
    }
    return hash;
  }

  // Scheduler and batches follow from the step, and nothing draws random numbers while training (no
  // dropout), so there is no more to save.
  void save() const {
    torch::serialize::OutputArchive archive;
    const auto add = [&archive](const std::string& name, const auto& part) {
      torch::serialize::OutputArchive own(archive.compilation_unit());
      part.save(own);
      archive.write(name, own);
    };
    add("model", *model_);
    for (size_t i = 0; i < optimizers_.size(); ++i) {
      add("optimizer" + std::to_string(i), *optimizers_[i]);
    }
    archive.write("step", torch::IValue(step_));
    archive.write("seconds", torch::IValue(seconds_));
    archive.write("metrics", torch::IValue(metrics_.lines()));
    archive.write("settings", torch::IValue(settings_));
    // Renamed when whole: an interruption while writing leaves the checkpoint before.
    const std::string unfinished = options_.checkpoint + ".tmp";
    archive.save_to(unfinished);
    std::filesystem::rename(unfinished, options_.checkpoint);
  }

  void load() {
    torch::serialize::InputArchive archive;
    archive.load_from(options_.checkpoint, device_);
    const auto value = [&archive](const char* name) {
      torch::IValue result;
      archive.read(name, result);
      return result;
    };
    const auto read = [&archive](const std::string& name, auto& part) {
      torch::serialize::InputArchive own;
      archive.read(name, own);
      part.load(own);
    };
    std::istringstream before(value("settings").toStringRef()), now(settings_);
    std::string was, is;
    while (std::getline(before, was) && std::getline(now, is)) {
      check(was == is, options_.checkpoint + " was made with " + was + ", and this run has " + is);
    }
    read("model", *model_);
    for (size_t i = 0; i < optimizers_.size(); ++i) {
      read("optimizer" + std::to_string(i), *optimizers_[i]);
    }
    step_ = value("step").toInt();
    seconds_ = value("seconds").toDouble();
    metrics_.begin(value("metrics").toStringRef());
    std::cout << "resuming after step " << step_ << "\n";
  }

  Options options_;
  torch::Device device_;
  Data data_;
  std::vector<Batch> validation_;
  LanguageModel model_{nullptr};
  Optimizers optimizers_;
  MetricsFile metrics_;
  std::string settings_;
  int64_t step_ = 0;    // updates made
  double seconds_ = 0;  // spent on them
};

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> words(argv + 1, argv + argc);
    if (std::find(words.begin(), words.end(), "--help") != words.end()) {
      std::cout << usage();
      return 0;
    }
    Options options = parse_options(words);
    if (options.data.empty()) options.data = default_files();
    check(!options.data.empty(),
          "no Python standard library is here: name a text with --data FILE...");
    if (options.threads) torch::set_num_threads(static_cast<int>(options.threads));
    std::cout << std::setprecision(4);
    Run(options).train();
  } catch (const c10::Error& error) {
    std::cerr << "train_lm: " << error.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "train_lm: " << error.what() << "\n";
    return 1;
  }
}
