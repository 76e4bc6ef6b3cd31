// Builds the module trees of tests/python/routing_trees.py and writes how they are routed, for a
// comparison with Python: routing_cases INPUT OUTPUT, both as torch.save and torch::pickle_save
// write.

#include <erlangen/erlangen.h>
#include <torch/nn.h>
#include <torch/serialize.h>

#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

namespace nn = torch::nn;
using erlangen::EquivariantOptions;
using Module = std::shared_ptr<nn::Module>;
using Sizes = std::vector<int64_t>;

template <typename Impl, typename... Args>
Module make(Args&&... args) {
  return std::make_shared<Impl>(std::forward<Args>(args)...);
}

// In the order of the sizes in routing_trees.py.
const std::map<std::string, std::function<Module(const Sizes&)>> kTypes = {
    {"Sequential", [](const Sizes&) { return make<nn::SequentialImpl>(); }},
    {"ModuleList", [](const Sizes&) { return make<nn::ModuleListImpl>(); }},
    {"Linear", [](const Sizes& s) { return make<nn::LinearImpl>(s[0], s[1]); }},
    {"Bilinear", [](const Sizes& s) { return make<nn::BilinearImpl>(s[0], s[1], s[2]); }},
    {"Embedding", [](const Sizes& s) { return make<nn::EmbeddingImpl>(s[0], s[1]); }},
    {"EmbeddingBag", [](const Sizes& s) { return make<nn::EmbeddingBagImpl>(s[0], s[1]); }},
    {"LayerNorm", [](const Sizes& s) { return make<nn::LayerNormImpl>(nn::LayerNormOptions(s)); }},
    {"BatchNorm2d", [](const Sizes& s) { return make<nn::BatchNorm2dImpl>(s[0]); }},
    {"GroupNorm",
     [](const Sizes& s) { return make<nn::GroupNormImpl>(nn::GroupNormOptions(s[0], s[1])); }},
    {"Conv1d",
     [](const Sizes& s) {
       return make<nn::Conv1dImpl>(nn::Conv1dOptions(s[0], s[1], s[2]).groups(s[3]));
     }},
    {"Conv2d",
     [](const Sizes& s) {
       return make<nn::Conv2dImpl>(nn::Conv2dOptions(s[0], s[1], s[2]).groups(s[3]));
     }},
    {"ConvTranspose2d",
     [](const Sizes& s) {
       return make<nn::ConvTranspose2dImpl>(
           nn::ConvTranspose2dOptions(s[0], s[1], s[2]).groups(s[3]));
     }},
    {"MultiheadAttention",
     [](const Sizes& s) {
       return make<nn::MultiheadAttentionImpl>(
           nn::MultiheadAttentionOptions(s[0], s[1]).kdim(s[2]).vdim(s[2]).add_bias_kv(true));
     }},
    {"TransformerEncoderLayer",
     [](const Sizes& s) {
       return make<nn::TransformerEncoderLayerImpl>(
           nn::TransformerEncoderLayerOptions(s[0], s[1]).dim_feedforward(s[2]));
     }},
    {"TransformerDecoderLayer",
     [](const Sizes& s) {
       return make<nn::TransformerDecoderLayerImpl>(
           nn::TransformerDecoderLayerOptions(s[0], s[1]).dim_feedforward(s[2]));
     }},
    {"LSTM",
     [](const Sizes& s) {
       return make<nn::LSTMImpl>(nn::LSTMOptions(s[0], s[1]).proj_size(s[2]).bidirectional(true));
     }},
    {"GRU", [](const Sizes& s) { return make<nn::GRUImpl>(nn::GRUOptions(s[0], s[1])); }},
    {"RNN", [](const Sizes& s) { return make<nn::RNNImpl>(nn::RNNOptions(s[0], s[1])); }},
    {"Softmax", [](const Sizes& s) { return make<nn::SoftmaxImpl>(s[0]); }},
    {"GRUCell", [](const Sizes& s) { return make<nn::GRUCellImpl>(s[0], s[1]); }},
};

struct TiedLinear : nn::LinearImpl {
  explicit TiedLinear(const torch::Tensor& table)
      : LinearImpl(nn::LinearOptions(table.size(1), table.size(0)).bias(false)) {
    weight = parameters_["weight"] = table;
  }
};

// Python's lists of numbers come typed or not.
Sizes sizes_of(const c10::IValue& list) {
  if (list.isIntList()) return list.toIntVector();
  Sizes sizes;
  for (const c10::IValue& size : list.toListRef()) sizes.push_back(size.toInt());
  return sizes;
}

// Each entry: its path, what it is, its sizes. Parents come before what they hold.
Module build(const std::string& kind, const c10::IValue& entries) {
  const auto root = std::make_shared<nn::Module>(kind);
  std::map<std::string, Module> modules = {{"", root}};
  for (const c10::IValue& item : entries.toListRef()) {
    const auto parts = item.toListRef();
    const std::string &path = parts[0].toStringRef(), &type = parts[1].toStringRef();
    const size_t dot = path.rfind('.');
    const bool is_top = dot == std::string::npos;
    const Module parent = modules.at(is_top ? "" : path.substr(0, dot));
    const std::string name = is_top ? path : path.substr(dot + 1);
    Module module;
    if (type == "Parameter") {
      parent->register_parameter(name, torch::randn(sizes_of(parts[2])));
      continue;
    } else if (type == "same" || type == "tied") {
      module = modules.at(parts[2].toStringRef());
      if (type == "tied") module = make<TiedLinear>(module->named_parameters()["weight"]);
    } else if (kTypes.count(type)) {
      module = kTypes.at(type)(sizes_of(parts[2]));
    } else {  // a class of the user's own
      module = std::make_shared<nn::Module>(type);
    }
    parent->register_module(name, module);
    modules[path] = module;
  }
  return root;
}

c10::IValue routed(const nn::Module& module, const c10::IValue& choices,
                   const std::string& adjust_lr_fn) {
  erlangen::Overrides overrides;
  for (const auto& item : choices.toGenericDict()) {
    EquivariantOptions options;
    for (const auto& option : item.value().toGenericDict()) {
      options.set(option.key().toStringRef(), option.value());
    }
    overrides.emplace_back(item.key().toStringRef(), options);
  }
  c10::impl::GenericDict result(c10::StringType::get(), c10::AnyType::get());
  for (const auto& group : erlangen::param_groups(module, overrides, adjust_lr_fn)) {
    const auto& options = static_cast<const EquivariantOptions&>(group.options());
    for (size_t i = 0; i < group.params().size(); ++i) {
      c10::impl::GenericDict found(c10::StringType::get(), c10::AnyType::get());
      for (const char* name : {"role", "rule", "layout", "center", "weight_decay", "adjust_lr_fn",
                               "update_scale", "momentum"}) {
        found.insert(name, options.get(name));
      }
      found.insert("evidence", options.evidence()[i]);
      found.insert("why", options.why()[i]);
      result.insert(options.param_names()[i], found);
    }
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: routing_cases INPUT OUTPUT\n";
    return 2;
  }
  std::ifstream file(argv[1], std::ios::binary);
  const c10::IValue cases =
      torch::pickle_load(std::vector<char>(std::istreambuf_iterator<char>(file), {}));
  c10::impl::GenericDict out(c10::StringType::get(), c10::AnyType::get());
  for (const auto& item : cases.toGenericDict()) {
    const auto& parts = item.value().toListRef();  // a tree, overrides, adjust_lr_fn
    const Module root = build(item.key().toStringRef(), parts[0]);
    out.insert(item.key(), routed(*root, parts[1], parts[2].toStringRef()));
  }
  const std::vector<char> bytes = torch::pickle_save(out);
  std::ofstream(argv[2], std::ios::binary).write(bytes.data(), bytes.size());
  return 0;
}
