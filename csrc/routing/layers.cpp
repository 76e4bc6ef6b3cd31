#include "routing/findings.h"
#include "routing/name_patterns.h"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/rnn.h>

#include <algorithm>
#include <set>

namespace erlangen {

namespace nn = torch::nn;

namespace {

Layout heads(int64_t n, int64_t dim) {
  return n > 1 ? Layout{LayoutStep::heads(n, dim)} : Layout{};
}

// A gain [C, 1, 1], a class token [1, 1, d]: at most one of its sizes is not 1.
bool is_vector(const torch::Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return tensor.dim() > 2 &&
         std::count_if(sizes.begin(), sizes.end(), [](int64_t size) { return size != 1; }) <= 1;
}

// A depthwise kernel maps no channel to another, it is one filter a channel: not a matrix, and none
// of the matrices' symmetries.
Finding judge_convolution(const nn::Module& module, const Convolution& conv) {
  if (conv.groups > 1 && conv.groups == conv.in &&
      (!conv.is_transposed || conv.groups == conv.out)) {
    return {"other", Grade::declared, "a filter for each channel"};
  }
  const bool is_sure = !is_linear(module);  // what mixes neighbours is none of the other roles
  return {"dense", is_sure ? Grade::declared : Grade::assumed,
          is_sure ? "a convolution" : "a convolution of single points", storage_of(module)};
}

// One number for each head, as a bias by distance has, is no vector that could be rotated.
Finding judge_table(const Model& model, size_t place, const torch::Tensor& table) {
  const auto& users = model.tree[place].users;
  std::set<int64_t> heads_around;
  for (const auto& [user, name] : users) {
    const Sizes& stated = model.tree[user].stated;
    if (stated.count("heads")) heads_around.insert(stated.at("heads"));
  }
  const bool is_named = std::any_of(users.begin(), users.end(), [](const auto& user) {
    return is_found("distances", user.second);
  });
  if (heads_around.count(table.size(-1))) {
    const Grade grade = is_named ? Grade::recognised : Grade::assumed;
    return {"other", grade, "one number for each attention head"};
  }
  if (is_named && heads_around.empty()) {
    return {"embedding", Grade::assumed, "a lookup table, if not of one number for each head"};
  }
  return {"embedding", Grade::declared, "a lookup table"};
}

Finding judge_weight(const Model& model, size_t place, const torch::Tensor& weight) {
  const nn::Module& module = *model.nodes[place].module;
  if (is_embedding(module)) return judge_table(model, place, weight);
  for (const auto& [user, name] : model.tree[place].users) {
    const auto* attention = model.nodes[user].module->as<nn::MultiheadAttentionImpl>();
    if (attention && name == "out_proj" && is_linear(module)) {
      return {"attention", Grade::declared, "torch.nn.MultiheadAttention",
              heads(attention->options.num_heads(), -1)};
    }
  }
  if (module.as<nn::BilinearImpl>()) {
    return {"dense", Grade::declared, "torch.nn.Bilinear", storage_of(module)};
  }
  if (const auto conv = convolution_of(module)) return judge_convolution(module, *conv);
  return {"dense", Grade::assumed, "a " + model.tree[place].kind};
}

// Recurrent layers stack the matrices of their gates; an LSTM's projection has none.
template <typename Layer, typename Cell>
bool judge_recurrent(const nn::Module& module, const torch::Tensor& tensor, int64_t gates,
                     Finding& finding) {
  int64_t hidden = 0;
  if (const auto* layer = dynamic_cast<const Layer*>(&module)) {
    hidden = layer->options_base.hidden_size();
  } else if (const auto* cell = dynamic_cast<const Cell*>(&module)) {
    hidden = cell->options_base.hidden_size();
  } else {
    return false;
  }
  const bool has_gates = tensor.size(0) == gates * hidden;
  finding = {"dense", Grade::declared, "of a recurrent layer",
             has_gates ? heads(gates, -2) : Layout{}};
  return true;
}

Finding judge_attention(const nn::MultiheadAttentionImpl& module, const torch::Tensor& tensor) {
  const std::string why = "torch.nn.MultiheadAttention";
  // q, k, v apart or one above the other: the heads of each are equal parts of the rows.
  const int64_t rows = tensor.size(0) * module.options.num_heads();
  const int64_t width = module.options.embed_dim();
  if (width == 0 || rows % width != 0) {
    return {"attention", Grade::assumed, why + ", whose rows are no multiple of its width"};
  }
  return {"attention", Grade::declared, why, heads(rows / width, -2)};
}

// Whether somebody in or around the module states one of the tensor's sizes.
bool has_stated_size(const Model& model, size_t place, const torch::Tensor& tensor) {
  const auto states_one = [&](size_t at) {
    const Sizes& stated = model.tree[at].stated;
    return std::any_of(stated.begin(), stated.end(), [&](const auto& entry) {
      const auto sizes = tensor.sizes();
      return entry.second != 1 &&
             std::find(sizes.begin(), sizes.end(), entry.second) != sizes.end();
    });
  };
  const auto owner = owner_of(model.tree, place);
  return states_one(place) || (owner && states_one(*owner));
}

Finding judge_tensor(const Model& model, size_t place, const std::string& name,
                     const torch::Tensor& tensor) {
  const nn::Module& module = *model.nodes[place].module;
  const std::string& kind = model.tree[place].kind;
  if (module.as<nn::LayerNormImpl>()) return {"other", Grade::declared, "gains of a norm"};
  if (is_found("norm_classes", kind) && has_stated_size(model, place, tensor)) {
    return {"other", Grade::recognised, "gains of a " + kind};
  }
  Finding finding;
  if (judge_recurrent<nn::LSTMImpl, nn::LSTMCellImpl>(module, tensor, 4, finding) ||
      judge_recurrent<nn::GRUImpl, nn::GRUCellImpl>(module, tensor, 3, finding) ||
      judge_recurrent<nn::RNNImpl, nn::RNNCellImpl>(module, tensor, 1, finding)) {
    return finding;
  }
  if (const auto* attention = module.as<nn::MultiheadAttentionImpl>()) {
    return judge_attention(*attention, tensor);
  }
  const std::string sizes = c10::str(tensor.sizes());
  const auto by_name = [&](const std::string& what) -> Finding {
    if (has_stated_size(model, place, tensor)) {
      return {"other", Grade::recognised, what + ", by the name " + name};
    }
    return {"other", Grade::assumed, what + " by the name " + name + " alone, " + sizes};
  };
  if (is_found("vectors", name) && tensor.dim() == 2) return by_name("bias");
  // A square could be a matrix for all that its name says.
  const auto all = tensor.sizes();
  const bool is_square = tensor.dim() == 2 && all[0] == all[1];
  if (is_found("gains", name) && !is_square) return by_name("gains");
  if (is_found("tables_of_numbers", name)) return by_name("numbers");
  return {"other", Grade::assumed, "a tensor of " + kind + " itself, " + sizes};
}

}  // namespace

const char* name_of(Grade grade) {
  return grade == Grade::declared     ? "declared"
         : grade == Grade::recognised ? "recognised"
                                      : "assumed";
}

std::vector<std::pair<torch::Tensor, Finding>> judge(const Model& model, size_t place) {
  const ModuleNode& node = model.nodes[place];
  const bool has_weight = has_one_weight(*node.module);
  std::vector<std::pair<torch::Tensor, Finding>> result;
  for (const auto& [name, tensor] : node.tensors) {
    if (tensor.dim() < 2 || is_vector(tensor)) {
      result.push_back({tensor, {"other", Grade::declared, "a vector"}});
    } else if (has_weight && name == "weight") {
      result.emplace_back(tensor, judge_weight(model, place, tensor));
    } else {
      result.emplace_back(tensor, judge_tensor(model, place, name, tensor));
    }
  }
  return result;
}

}  // namespace erlangen
