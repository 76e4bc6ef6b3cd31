// The command line of train_lm; names follow torch and transformers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "model.h"

struct Options {
  ModelOptions model;
  std::vector<std::string> data;
  std::string optimizer = "equivariant";
  int64_t steps = 200, batch_size = 16, seq_len = 128;
  double lr = 2e-3, weight_decay = 0.1, max_grad_norm = 1.0;
  int64_t warmup_steps = 20;
  double decay_fraction = 0.4;
  int64_t seed = 0;
  int64_t eval_every = 25, eval_batches = 8;
  std::string checkpoint, metrics;
  int64_t checkpoint_every = 100;
  bool resume = false;
  int64_t stop_after = 0;
  std::string device = "cpu";
  int64_t threads = 0;
};

// One option of the command line: reads its value from text, and writes it as text.
struct Argument {
  std::string name, help;
  bool shapes_run;  // the result of a run depends on it: resuming must not change it
  std::function<void(const std::string&)> read;
  std::function<std::string()> write;
};

// The numbers must be finite and at least `low`.
template <typename T>
Argument number(const char* name, T& value, T low, const char* help, bool shapes_run = true) {
  const auto read = [name, &value, low](const std::string& text) {
    std::istringstream stream(text);
    if (!(stream >> value) || !stream.eof() || !std::isfinite(static_cast<double>(value)) ||
        value < low) {
      std::ostringstream message;
      message << name << " " << text << ": must be a number of at least " << low;
      throw std::runtime_error(message.str());
    }
  };
  const auto write = [&value] {
    std::ostringstream stream;
    stream.precision(10);
    stream << value;
    return stream.str();
  };
  return {name, help, shapes_run, read, write};
}

inline Argument text(const char* name, std::string& value, const char* help,
                     bool shapes_run = false) {
  return {name, help, shapes_run, [&value](const std::string& given) { value = given; },
          [&value] { return value; }};
}

// All arguments with one value each; --data and the flags are read by parse_options.
inline std::vector<Argument> arguments(Options& o) {
  const int64_t zero = 0, one = 1;
  return {
      text("--optimizer", o.optimizer, "equivariant, adamw or muon, all from the same start", true),
      number("--steps", o.steps, one, "of the whole run"),
      number("--batch-size", o.batch_size, one, "sequences a step"),
      number("--seq-len", o.seq_len, one, "tokens (bytes) a sequence"),
      number("--lr", o.lr, 0.0, "highest learning rate"),
      number("--weight-decay", o.weight_decay, 0.0,
             "of the matrices between embedding and LM head"),
      number("--max-grad-norm", o.max_grad_norm, 0.0, "0: no clipping"),
      number("--warmup-steps", o.warmup_steps, zero, "in which the learning rate rises"),
      number("--decay-fraction", o.decay_fraction, 0.0, "of the steps, in which it falls to zero"),
      number("--seed", o.seed, zero, "of initial weights and batches"),
      number("--hidden-size", o.model.hidden_size, one, "width of the residual stream"),
      number("--num-hidden-layers", o.model.num_hidden_layers, one, "each second one a mixture"),
      number("--num-attention-heads", o.model.num_attention_heads, one, "of queries"),
      number("--num-key-value-heads", o.model.num_key_value_heads, one, "of keys and values"),
      number("--intermediate-size", o.model.intermediate_size, one, "SwiGLU units of an MLP"),
      number("--num-experts", o.model.num_experts, one, "of a mixture"),
      number("--num-experts-per-tok", o.model.num_experts_per_tok, one, "that each token uses"),
      number("--moe-intermediate-size", o.model.moe_intermediate_size, one, "units of an expert"),
      number("--eval-every", o.eval_every, one, "steps between validations", false),
      number("--eval-batches", o.eval_batches, one, "of a validation", false),
      text("--checkpoint", o.checkpoint, "file to save the run to"),
      number("--checkpoint-every", o.checkpoint_every, zero, "0: at the end only", false),
      text("--metrics", o.metrics, "file of JSON lines: losses, lr, tokens, seconds"),
      number("--stop-after", o.stop_after, zero, "end early at this step; --resume goes on", false),
      text("--device", o.device, "cpu or cuda"),
      number("--threads", o.threads, zero, "CPU threads; 0: torch's own choice", false),
  };
}

inline std::string usage() {
  Options defaults;
  std::ostringstream out;
  out << "train_lm [--data FILE...] [--resume] [options]\n";
  for (const Argument& argument : arguments(defaults)) {
    std::string head = "  " + argument.name + " (" + argument.write() + ")";
    head.resize(std::max<size_t>(head.size() + 1, 34), ' ');
    out << head << argument.help << "\n";
  }
  return out.str();
}

inline void check(bool good, const std::string& message) {
  if (!good) throw std::runtime_error(message);
}

// Now, rather than when the file is due: it can be written, and nothing is lost by that.
inline void check_output(const std::string& option, const std::string& file, bool resume) {
  namespace fs = std::filesystem;
  if (file.empty()) return;
  check(fs::is_directory(fs::absolute(file).parent_path()),
        option + " " + file + ": no such directory");
  check(resume || !fs::exists(file),
        option + " " + file + " exists: --resume goes on, or name another file");
}

inline Options parse_options(const std::vector<std::string>& words) {
  Options o;
  const auto known = arguments(o);
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--resume") {
      o.resume = true;
    } else if (words[i] == "--data") {
      while (i + 1 < words.size() && words[i + 1].rfind("--", 0) != 0) o.data.push_back(words[++i]);
      check(!o.data.empty(), "--data: name at least one file");
    } else {
      const auto argument = std::find_if(known.begin(), known.end(),
                                         [&](const Argument& a) { return a.name == words[i]; });
      check(argument != known.end(), words[i] + ": no such option (--help lists them)");
      check(i + 1 < words.size(), words[i] + ": needs a value");
      argument->read(words[++i]);
    }
  }
  const ModelOptions& m = o.model;
  check(o.optimizer == "equivariant" || o.optimizer == "adamw" || o.optimizer == "muon",
        "--optimizer " + o.optimizer + ": must be equivariant, adamw or muon");
  check(m.hidden_size % (2 * m.num_attention_heads) == 0,
        "--hidden-size: must be an even multiple of --num-attention-heads");
  check(m.num_attention_heads % m.num_key_value_heads == 0,
        "--num-attention-heads: must be a multiple of --num-key-value-heads");
  check(m.num_experts_per_tok <= m.num_experts,
        "--num-experts-per-tok: must not be more than --num-experts");
  check(o.decay_fraction <= 1.0, "--decay-fraction: must not be more than 1");
  check(!o.resume || !o.checkpoint.empty(), "--resume: name the file with --checkpoint");
  check(!o.resume || std::filesystem::exists(o.checkpoint), "--resume: no file " + o.checkpoint);
  check_output("--checkpoint", o.checkpoint, o.resume);
  check_output("--metrics", o.metrics, o.resume);
  return o;
}

// What must be equal for a resumed run to be the same run, one setting a line.
inline std::string settings(Options o) {
  std::string result;
  for (const Argument& argument : arguments(o)) {
    if (argument.shapes_run) result += argument.name + " " + argument.write() + "\n";
  }
  return result;
}
