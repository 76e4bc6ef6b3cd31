// Text as bytes: files, a held-out part, and batches with next-token labels.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

// Inputs and labels: the token at position t of `input_ids` is followed by the one at t of
// `labels`.
struct Batch {
  torch::Tensor input_ids, labels;
};

// A text of which each byte is a token, and a zero byte ends each document.
class Text {
 public:
  void add(const std::string& document) { (tokens_ += document) += '\0'; }
  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  const std::string& tokens() const { return tokens_; }

  // Windows of seq_len + 1 tokens, beginning at each of `starts`. Inputs and labels are cut out of
  // them here, and this is the only shift: what the model says at t is compared with token t + 1.
  Batch windows(const std::vector<int64_t>& starts, int64_t seq_len) const {
    const auto count = static_cast<int64_t>(starts.size());
    auto tokens = torch::empty({count, seq_len + 1}, torch::kInt64);
    for (int64_t i = 0; i < count; ++i) {
      std::transform(tokens_.begin() + starts[i], tokens_.begin() + starts[i] + seq_len + 1,
                     tokens[i].data_ptr<int64_t>(),
                     [](char c) { return static_cast<unsigned char>(c); });
    }
    return {tokens.slice(1, 0, seq_len).contiguous(), tokens.slice(1, 1).contiguous()};
  }

 private:
  std::string tokens_;
};

// Where the `python3` on PATH keeps its standard library; empty if there is none.
inline std::filesystem::path python_library() {
  std::FILE* answer = popen(
      "python3 -c \"import sysconfig; print(sysconfig.get_path('stdlib'))\" 2>/dev/null", "r");
  if (!answer) return {};
  std::string path;
  for (int c; (c = std::fgetc(answer)) != EOF && c != '\n';) path += static_cast<char>(c);
  pclose(answer);
  return path;
}

// The modules of the Python standard library: a text that most machines have. Without a python3 it
// is looked for where Linux distributions put it; of several versions the first, because the others
// would repeat it.
inline std::vector<std::string> default_files() {
  namespace fs = std::filesystem;
  std::error_code missing;
  std::vector<fs::path> places = {python_library()};
  for (const char* parent : {"/usr/lib", "/usr/local/lib"}) {
    std::vector<fs::path> versions;
    for (const auto& entry : fs::directory_iterator(parent, missing)) {
      if (entry.path().filename().string().rfind("python3", 0) == 0) versions.push_back(entry);
    }
    std::sort(versions.begin(), versions.end());
    places.insert(places.end(), versions.begin(), versions.end());
  }
  for (const auto& place : places) {
    std::vector<std::string> files;
    for (const auto& file : fs::directory_iterator(place, missing)) {
      if (file.path().extension() == ".py") files.push_back(file.path().string());
    }
    std::sort(files.begin(), files.end());
    if (!files.empty()) return files;
  }
  return {};
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) {
    throw std::runtime_error("--data " + path + ": cannot be read");
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

// Batches of a run. The last twentieth of every file is held out for validation.
class Data {
 public:
  Data(const std::vector<std::string>& files, int64_t batch_size, int64_t seq_len, int64_t seed)
      : batch_size_(batch_size), seq_len_(seq_len), seed_(seed) {
    for (const auto& file : files) {
      const std::string document = read_file(file);
      const size_t cut = document.size() - document.size() / 20;
      train_.add(document.substr(0, cut));
      validation_.add(document.substr(cut));
    }
    if (std::min(train_.size(), validation_.size()) <= seq_len) {
      throw std::runtime_error("too little text: training and validation part need more than " +
                               std::to_string(seq_len) + " bytes each (--data, --seq-len)");
    }
  }

  const Text& train_text() const { return train_; }
  const Text& validation_text() const { return validation_; }

  // Training batch number `step`, at random positions. It depends on nothing but the seed and its
  // number, so that a resumed run needs to know no more than the step at which it stands.
  Batch train(int64_t step) const {
    std::seed_seq seed{seed_, step};
    std::mt19937_64 random(seed);
    std::vector<int64_t> starts(batch_size_);
    for (auto& start : starts) start = random() % (train_.size() - seq_len_);
    return train_.windows(starts, seq_len_);
  }

  // At most `count` batches, spread evenly over the held-out text; always the same ones.
  std::vector<Batch> validation(int64_t count) const {
    const int64_t available = (validation_.size() - 1) / seq_len_;
    const int64_t windows = std::min(available, count * batch_size_);
    std::vector<Batch> batches;
    for (int64_t first = 0; first < windows; first += batch_size_) {
      std::vector<int64_t> starts;
      for (int64_t i = first; i < std::min(first + batch_size_, windows); ++i) {
        starts.push_back(i * available / windows * seq_len_);
      }
      batches.push_back(validation_.windows(starts, seq_len_));
    }
    return batches;
  }

 private:
  int64_t batch_size_, seq_len_, seed_;
  Text train_, validation_;
};
