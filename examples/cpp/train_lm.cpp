// Trains a small language model in nothing but C++: LibTorch, and Erlangen's optimizer.
//
//   prefix=$(python -c 'import erlangen; print(erlangen.cmake_prefix_path)')
//   cmake -S examples/cpp -B build/train_lm -DCMAKE_PREFIX_PATH="$prefix"
//   cmake --build build/train_lm
//   build/train_lm/train_lm
//   build/train_lm/train_lm --optimizer adamw      # the same start and batches, to compare
//
// Without pip: `cmake --install` Erlangen under a prefix, and give CMAKE_PREFIX_PATH that prefix
// and the directory of LibTorch. --help lists the options. The text is --data FILE..., or the
// Python standard library's sources; tokens are bytes. Ends in about a minute on two CPU cores.
//
//   train_lm --checkpoint run.pt                   # saves the run every 100 steps
//   train_lm --checkpoint run.pt --resume          # goes on after an interruption
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
#include "model.h"
#include "options.h"

// FNV-1a: not for security, but two runs that differ in a bit differ here.
uint64_t fingerprint(const void* data, size_t size, uint64_t hash = 0xcbf29ce484222325) {
  for (size_t i = 0; i < size; ++i) {
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3;
  }
  return hash;
}

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const LanguageModel& model,
                                                        const Options& o) {
  const auto groups = erlangen::param_groups(*model, overrides(o.model));
  if (o.optimizer == "equivariant") {
    auto optimizer = std::make_unique<erlangen::Equivariant>(
        groups, erlangen::EquivariantOptions(o.lr).weight_decay(o.weight_decay));
    std::cout << optimizer->explain() << "\n";
    return optimizer;
  }
  // AdamW on the same groups, so that both decay the same parameters.
  const auto defaults = torch::optim::AdamWOptions(o.lr).betas({0.9, 0.95}).weight_decay(0.0);
  std::vector<torch::optim::OptimizerParamGroup> adamw_groups;
  for (const auto& group : groups) {
    const auto& equivariant = static_cast<const erlangen::EquivariantOptions&>(group.options());
    auto options = std::make_unique<torch::optim::AdamWOptions>(defaults);
    // Where the role leaves the decay open, it is the caller's; else the role has set it to 0.
    if (!equivariant.is_set("weight_decay")) options->weight_decay(o.weight_decay);
    adamw_groups.emplace_back(group.params(), std::move(options));
  }
  return std::make_unique<torch::optim::AdamW>(adamw_groups, defaults);
}

// Linear warm-up, constant, then linear to zero. The rate depends on the step alone, so that a
// resumed run needs no more than to begin at its step: LibTorch's schedulers cannot be saved.
class Schedule : public torch::optim::LRScheduler {
 public:
  // Sets the learning rate of step `first_step`; each step() sets that of the next one.
  Schedule(torch::optim::Optimizer& optimizer, const Options& o, int64_t first_step)
      : LRScheduler(optimizer), options_(o) {
    step_count_ = static_cast<unsigned>(first_step);
    step();
  }

 private:
  // The same for all groups: what a group needs beside it is in its lr_scale.
  std::vector<double> get_lrs() override {
    const double step = step_count_, decay_steps = options_.decay_fraction * options_.steps;
    const double rising = (step + 1) / std::max<int64_t>(options_.warmup_steps, 1);
    const double falling = (options_.steps - step) / (decay_steps + 1);
    const double factor = std::min({rising, decay_steps > 0 ? falling : 1.0, 1.0});
    return std::vector<double>(get_current_lrs().size(), options_.lr * factor);
  }

  Options options_;
};

// Everything that makes up a run, and how it goes to a file and back.
class Run {
 public:
  explicit Run(const Options& o)
      : options_(o),
        device_(o.device),
        data_(o.data, o.batch_size, o.seq_len, o.seed),
        validation_(data_.validation(o.eval_batches)) {
    torch::manual_seed(o.seed);
    model_ = LanguageModel(o.model);
    model_->to(device_);
    int64_t parameters = 0;
    for (const auto& parameter : model_->parameters()) parameters += parameter.numel();
    std::cout << data_.train_text().size() << " training and " << data_.validation_text().size()
              << " validation bytes, " << parameters << " parameters\n";
    optimizer_ = make_optimizer(model_, o);
    const std::string& text = data_.train_text().tokens();
    settings_ = settings(o) + "--data of hash " +
                std::to_string(fingerprint(text.data(), text.size())) + "\n";
    if (o.resume) load();
  }

  void train() {
    Schedule schedule(*optimizer_, options_, step_);
    const int64_t last =
        options_.stop_after ? std::min(options_.stop_after, options_.steps) : options_.steps;
    double loss = std::nan(""), seconds = 0;
    int64_t timed = 0;
    if (step_ == 0) std::cout << "step 0  val_loss " << evaluate() << std::endl;
    while (step_ < last) {
      const auto start = std::chrono::steady_clock::now();
      loss = update();
      schedule.step();
      seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      ++timed;
      ++step_;
      if (step_ % options_.eval_every == 0 || step_ == last) {
        std::cout << "step " << step_ << "  loss " << loss << "  val_loss " << evaluate() << "  "
                  << seconds / timed << " s/step" << std::endl;
      }
      const bool due = options_.checkpoint_every && step_ % options_.checkpoint_every == 0;
      if (!options_.checkpoint.empty() && (due || step_ == last)) save();
    }
    std::cout << "parameters " << std::hex << parameter_fingerprint() << std::dec << std::endl;
  }

 private:
  torch::Tensor loss_of(const Batch& batch) {
    const auto logits = model_(batch.input_ids.to(device_));
    return torch::cross_entropy_loss(logits.flatten(0, 1), batch.labels.to(device_).flatten());
  }

  // One optimizer step; returns the loss before it.
  double update() {
    optimizer_->zero_grad();
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
    optimizer_->step();
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
    torch::serialize::OutputArchive model(archive.compilation_unit());
    torch::serialize::OutputArchive optimizer(archive.compilation_unit());
    model_->save(model);
    optimizer_->save(optimizer);
    archive.write("model", model);
    archive.write("optimizer", optimizer);
    archive.write("step", torch::IValue(step_));
    archive.write("settings", torch::IValue(settings_));
    // Renamed when whole: an interruption while writing leaves the checkpoint before.
    const std::string unfinished = options_.checkpoint + ".tmp";
    archive.save_to(unfinished);
    std::filesystem::rename(unfinished, options_.checkpoint);
  }

  void load() {
    torch::serialize::InputArchive archive, model, optimizer;
    archive.load_from(options_.checkpoint, device_);
    torch::IValue step, saved_settings;
    archive.read("settings", saved_settings);
    std::istringstream before(saved_settings.toStringRef()), now(settings_);
    std::string was, is;
    while (std::getline(before, was) && std::getline(now, is)) {
      check(was == is, options_.checkpoint + " was made with " + was + ", and this run has " + is);
    }
    archive.read("model", model);
    model_->load(model);
    archive.read("optimizer", optimizer);
    optimizer_->load(optimizer);
    archive.read("step", step);
    step_ = step.toInt();
    std::cout << "resuming after step " << step_ << "\n";
  }

  Options options_;
  torch::Device device_;
  Data data_;
  std::vector<Batch> validation_;
  LanguageModel model_{nullptr};
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
  std::string settings_;
  int64_t step_ = 0;  // updates made
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
          "no Python standard library under /usr/lib: name a text with --data FILE...");
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
