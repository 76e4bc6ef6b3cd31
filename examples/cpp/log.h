// What a run tells while it goes: a progress line where somebody watches, and a file of metrics.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

// One line of the metrics, a JSON object, with the keys of examples/train_lm.py. NaN: not known.
struct Metrics {
  int64_t step = 0, tokens = 0;
  double seconds = 0;  // spent on updates; validations and checkpoints do not count
  double loss = std::nan(""), lr = std::nan(""), val_loss = std::nan("");

  std::string json() const {
    std::ostringstream out;
    out << std::setprecision(std::numeric_limits<double>::max_digits10);
    const auto add = [&out](const char* key, double value) {
      if (!std::isnan(value)) out << ", \"" << key << "\": " << value;
    };
    out << "{\"step\": " << step;
    add("loss", loss);
    add("lr", lr);
    out << ", \"tokens\": " << tokens;
    add("seconds", std::round(seconds * 1000) / 1000);
    add("val_loss", val_loss);
    out << "}\n";
    return out.str();
  }
};

// The metrics of a run. They go to the file as they come; what a checkpoint knows of them is
// written anew when the run is resumed, so that the file is whole whatever became of it.
class MetricsFile {
 public:
  explicit MetricsFile(std::string path) : path_(std::move(path)) {}

  void begin(std::string known = "") {
    lines_ = std::move(known);
    if (path_.empty()) return;
    file_.open(path_, std::ios::trunc);
    file_ << lines_ << std::flush;
    if (!file_) throw std::runtime_error("--metrics " + path_ + ": cannot be written");
  }

  void add(const Metrics& metrics) {
    const std::string line = metrics.json();
    lines_ += line;
    if (!path_.empty()) file_ << line << std::flush;
  }

  const std::string& lines() const { return lines_; }

 private:
  std::string path_, lines_;
  std::ofstream file_;
};

// The last line of a terminal, written over at each step; nothing where the output goes elsewhere.
class ProgressLine {
 public:
  ~ProgressLine() { clear(); }  // before the message of an error, too

  void show(const Metrics& metrics, int64_t steps, double seconds_per_step) const {
    if (!terminal_) return;
    std::ostringstream out;
    out << std::fixed << std::setprecision(3) << "\r\033[Kstep " << metrics.step << "/" << steps
        << "  loss " << metrics.loss << "  " << seconds_per_step << " s/step  "
        << std::setprecision(0) << (steps - metrics.step) * seconds_per_step << " s left";
    std::cerr << out.str() << std::flush;
  }

  // Before anything else is printed.
  void clear() const {
    if (terminal_) std::cerr << "\r\033[K" << std::flush;
  }

 private:
  bool terminal_ = isatty(STDERR_FILENO);
};
