#include "check.h"
#include "ivalue.h"

#include <c10/util/Exception.h>
#include <erlangen/routing.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/rnn.h>
#include <torch/nn/modules/transformerlayer.h>

#include <algorithm>
#include <map>
#include <unordered_map>

namespace erlangen {

namespace nn = torch::nn;
using torch::optim::OptimizerParamGroup;

namespace {

// Where the types of modules say what a parameter is.
class Roles {
 public:
  void add(const std::string& module, const char* param, const char* role, Layout layout = {}) {
    const std::string name = module.empty() ? param : module + "." + param;
    EquivariantOptions options = role_options(role);
    if (!layout.empty()) options.layout(std::move(layout));
    options_.emplace(name, std::move(options));  // what a parent said of a child's stands
  }

  // What the modules say that hold this tensor under these names; no role where they disagree, or
  // where one of them says nothing.
  EquivariantOptions of(const std::vector<std::string>& names, int64_t dim) const {
    std::vector<EquivariantOptions> said;
    for (const std::string& name : names) said.push_back(of(name, dim));
    // A lookup table that is also a linear map is a tied head, whichever of them comes first.
    const EquivariantOptions table = role_options("embedding"), linear = role_options("dense");
    const bool tied = std::all_of(said.begin(), said.end(), [&](const EquivariantOptions& options) {
      return options == table || options == linear;
    });
    if (tied && std::find(said.begin(), said.end(), table) != said.end()) return table;
    const bool agree = std::all_of(said.begin(), said.end(),
                                   [&](const auto& options) { return options == said.front(); });
    return agree ? said.front() : EquivariantOptions();
  }

 private:
  EquivariantOptions of(const std::string& name, int64_t dim) const {
    const auto found = options_.find(name);
    if (found != options_.end()) return found->second;
    return dim < 2 ? role_options("other") : EquivariantOptions();
  }

  std::map<std::string, EquivariantOptions> options_;
};

Layout heads(int64_t n, int64_t dim) {
  return n == 1 ? Layout{} : Layout{LayoutStep::heads(n, dim)};
}

template <typename Conv>
bool add_conv(Roles& roles, const std::string& name, const nn::Module& module, bool transposed) {
  const auto* conv = dynamic_cast<const Conv*>(&module);
  if (!conv) return false;
  const int64_t groups = conv->options.groups();
  const bool depthwise = groups > 1 && groups == conv->options.in_channels() &&
                         (!transposed || groups == conv->options.out_channels());
  if (depthwise) {  // one filter a channel: no matrix
    roles.add(name, "weight", "other");
    return true;
  }
  // Groups see different channels, so each is a matrix of its own.
  Layout layout = {LayoutStep::flatten()};
  if (groups > 1) layout.push_back(LayoutStep::heads(groups, -2));
  if (transposed) layout.push_back(LayoutStep::transpose());  // stored as [in, out, ...]
  roles.add(name, "weight", "dense", std::move(layout));
  return true;
}

// Recurrent cells stack the matrices of their gates.
void add_recurrent(Roles& roles, const std::string& name, const nn::Module& module, int64_t gates) {
  for (const auto& item : module.named_parameters(/*recurse=*/false)) {
    if (item.value().dim() != 2) continue;
    // An LSTM's projection (weight_hr) has no gates.
    const bool projection = item.key().find("weight_hr") == 0;
    roles.add(name, item.key().c_str(), "dense", projection ? Layout{} : heads(gates, -2));
  }
}

void add_attention(Roles& roles, const std::string& name,
                   const nn::MultiheadAttentionImpl& module) {
  const int64_t n = module.options.num_heads();
  roles.add(name, "in_proj_weight", "attention", heads(3 * n, -2));
  for (const char* projection : {"q_proj_weight", "k_proj_weight", "v_proj_weight"}) {
    roles.add(name, projection, "attention", heads(n, -2));
  }
  roles.add(name, "out_proj.weight", "attention", heads(n, -1));
  roles.add(name, "bias_k", "other");
  roles.add(name, "bias_v", "other");
}

void add_module(Roles& roles, const std::string& name, const nn::Module& module) {
  if (const auto* attention = dynamic_cast<const nn::MultiheadAttentionImpl*>(&module)) {
    add_attention(roles, name, *attention);
  } else if (module.as<nn::TransformerEncoderLayerImpl>() ||
             module.as<nn::TransformerDecoderLayerImpl>()) {
    roles.add(name, "linear1.weight", "mlp_in");
    roles.add(name, "linear2.weight", "mlp_out");
  } else if (module.as<nn::EmbeddingImpl>() || module.as<nn::EmbeddingBagImpl>()) {
    roles.add(name, "weight", "embedding");
  } else if (module.as<nn::LayerNormImpl>()) {  // a gain over several dimensions is no matrix
    roles.add(name, "weight", "other");
    roles.add(name, "bias", "other");
  } else if (module.as<nn::LinearImpl>()) {
    roles.add(name, "weight", "dense");
  } else if (module.as<nn::BilinearImpl>()) {
    roles.add(name, "weight", "dense", {LayoutStep::flatten()});
  } else if (module.as<nn::LSTMImpl>() || module.as<nn::LSTMCellImpl>()) {
    add_recurrent(roles, name, module, 4);
  } else if (module.as<nn::GRUImpl>() || module.as<nn::GRUCellImpl>()) {
    add_recurrent(roles, name, module, 3);
  } else if (module.as<nn::RNNImpl>() || module.as<nn::RNNCellImpl>()) {
    add_recurrent(roles, name, module, 1);
  } else {
    add_conv<nn::Conv1dImpl>(roles, name, module, false) ||
        add_conv<nn::Conv2dImpl>(roles, name, module, false) ||
        add_conv<nn::Conv3dImpl>(roles, name, module, false) ||
        add_conv<nn::ConvTranspose1dImpl>(roles, name, module, true) ||
        add_conv<nn::ConvTranspose2dImpl>(roles, name, module, true) ||
        add_conv<nn::ConvTranspose3dImpl>(roles, name, module, true);
  }
}

// '*' stands for any characters, '?' for one.
bool matches(const char* pattern, const char* name) {
  if (*pattern == '*') return matches(pattern + 1, name) || (*name && matches(pattern, name + 1));
  if (!*name) return !*pattern;
  return (*pattern == '?' || *pattern == *name) && matches(pattern + 1, name + 1);
}

// What the caller says of parameters, and which of it has been used.
class Sayings {
 public:
  explicit Sayings(const Overrides& overrides) : overrides_(overrides), used_(overrides.size()) {
    for (const auto& [key, options] : overrides) {
      if (!options.role().empty()) {
        check_one_of("override " + repr(key), "role", options.role(), role_names());
      }
    }
  }

  // What is said of this parameter: by name before by glob, later globs before earlier ones.
  EquivariantOptions of_names(const std::vector<std::string>& names) {
    return said(names, /*with_globs=*/true);
  }
  EquivariantOptions of_role(const std::string& role) { return said({role}, false); }

  // Raises c10::ValueError for what says something of none of these parameters. Where some have no
  // role yet, what is said of a role may be meant for them.
  void check_used(const std::vector<std::string>& names, bool all_have_roles) const {
    for (size_t i = 0; i < overrides_.size(); ++i) {
      if (used_[i]) continue;
      const std::string& key = overrides_[i].first;
      const auto& roles = role_names();
      const bool of_role = std::find(roles.begin(), roles.end(), key) != roles.end();
      if (of_role && !all_have_roles) continue;
      const auto inside = std::find_if(names.begin(), names.end(), [&](const std::string& name) {
        return name.rfind(key + ".", 0) == 0;
      });
      TORCH_CHECK_VALUE(false, "override ", repr(key),
                        " matches no parameter that requires a gradient, and no role of this "
                        "module",
                        inside == names.end() ? "" : "; did you mean \"" + *inside + "\"?",
                        "; roles: ", join(role_names()));
    }
  }

 private:
  EquivariantOptions said(const std::vector<std::string>& keys, bool with_globs) {
    EquivariantOptions exact, globs;
    for (size_t i = overrides_.size(); i-- > 0;) {
      const auto& [pattern, options] = overrides_[i];
      const auto fits = [&](const std::string& key) {
        return matches(pattern.c_str(), key.c_str());
      };
      if (std::find(keys.begin(), keys.end(), pattern) != keys.end()) {
        exact.fill_from(options);
      } else if (with_globs && std::any_of(keys.begin(), keys.end(), fits)) {
        globs.fill_from(options);
      } else {
        continue;
      }
      used_[i] = true;
    }
    exact.fill_from(globs);
    return exact;
  }

  const Overrides& overrides_;
  std::vector<bool> used_;
};

}  // namespace

const std::vector<std::string>& role_names() {
  static const std::vector<std::string> names = {"embedding", "lm_head", "router",    "attention",
                                                 "mlp_in",    "mlp_out", "expert_in", "expert_out",
                                                 "dense",     "lora",    "other"};
  return names;
}

EquivariantOptions role_options(const std::string& role, const std::string& adjust_lr_fn) {
  check_one_of("role_options", "role", role, role_names());
  check_one_of("role_options", "adjust_lr_fn", adjust_lr_fn, adjust_lr_fn_names());
  EquivariantOptions options;
  options.role(role);
  if (role == "embedding") {
    options.rule("row_norm").update_scale(5.0).weight_decay(0.0);
    if (adjust_lr_fn != "match_rms_adamw" && adjust_lr_fn != "none") {
      options.rule("column_norm").layout({LayoutStep::transpose()});
    }
  } else if (role == "lm_head") {
    options.rule("row_norm").center(true).weight_decay(0.0);
  } else if (role == "router") {
    options.rule("left_spectral").center(true).weight_decay(0.0);
  } else if (role == "other") {
    options.rule("adamw").weight_decay(0.0);
  } else if (role == "lora") {
    options.rule("adamw");
  } else {
    options.rule("spectral");
  }
  if (options.rule() != "adamw" && adjust_lr_fn != options.adjust_lr_fn()) {
    options.adjust_lr_fn(adjust_lr_fn);
  }
  return options;
}

std::vector<OptimizerParamGroup> param_groups(const nn::Module& module, const Overrides& overrides,
                                              const std::string& adjust_lr_fn) {
  Roles roles;
  add_module(roles, "", module);
  // Without the module itself, which need not be in a shared_ptr.
  for (const auto& item : module.named_modules("", /*include_self=*/false)) {
    add_module(roles, item.key(), *item.value());
  }

  Sayings sayings(overrides);
  std::vector<std::pair<EquivariantOptions, std::vector<torch::Tensor>>> groups;
  std::vector<EquivariantOptions::Strings> names;
  std::string undecided;
  std::vector<std::string> trainable;
  std::unordered_map<const void*, std::vector<std::string>> names_of;
  for (const auto& item : module.named_parameters()) {
    names_of[item.value().unsafeGetTensorImpl()].push_back(item.key());
  }
  std::vector<at::IntArrayRef> tables;  // the shapes of the lookup tables
  for (const auto& item : module.named_parameters()) {
    const auto& param_names = names_of[item.value().unsafeGetTensorImpl()];
    const bool is_table = roles.of(param_names, item.value().dim()).role() == "embedding";
    if (is_table) tables.push_back(item.value().sizes());
  }
  for (const auto& item : module.named_parameters()) {
    const torch::Tensor& param = item.value();
    const std::vector<std::string>& param_names = names_of[param.unsafeGetTensorImpl()];
    if (!param.requires_grad() || item.key() != param_names.front()) continue;
    trainable.push_back(item.key());
    EquivariantOptions by_type = roles.of(param_names, param.dim());
    // A square one is as a rule a table of positions, in a model as wide as its context is long.
    const bool head = by_type == role_options("dense") && param.size(0) != param.size(1) &&
                      std::find(tables.begin(), tables.end(), param.sizes()) != tables.end();
    if (head) by_type = EquivariantOptions();
    EquivariantOptions options = sayings.of_names(param_names);
    // What is said of the role that the types show may name another role, whose own sayings count
    // more.
    EquivariantOptions of_type;
    if (options.role().empty()) of_type = sayings.of_role(by_type.role());
    std::string role = options.role();
    if (role.empty()) role = of_type.role();
    if (role.empty()) role = by_type.role();
    if (role.empty()) {
      undecided += "\n  " + join(param_names) + " " + c10::str(param.sizes());
      if (head) undecided += ", the shape of an Embedding: \"lm_head\", or \"dense\"?";
      continue;
    }
    options.role(role).fill_from(sayings.of_role(role));
    options.fill_from(of_type);
    EquivariantOptions of_role =
        role_options(role, options.is_set("adjust_lr_fn") ? options.adjust_lr_fn() : adjust_lr_fn);
    if (role == by_type.role() && !by_type.layout().empty()) {
      // How the tensor is stored comes before how the role looks at it.
      Layout layout = by_type.layout();
      layout.insert(layout.end(), of_role.layout().begin(), of_role.layout().end());
      of_role.layout(std::move(layout));
    }
    // AdamW has no use for these; the role's update_scale is for its own rule.
    if (options.rule() == "adamw") of_role.layout({}).center(false).update_scale(1.0);
    options.fill_from(of_role);
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& candidate) { return candidate.first == options; });
    if (group == groups.end()) {
      groups.emplace_back(options, std::vector<torch::Tensor>());
      names.emplace_back();
      group = groups.end() - 1;
    }
    group->second.push_back(param);
    names[group - groups.begin()].push_back(item.key());
  }
  sayings.check_used(trainable, undecided.empty());
  TORCH_CHECK_VALUE(undecided.empty(), "no role can be given to", undecided,
                    "\nSay it with an override, such as {{\"*.w1\", EquivariantOptions().role(\"",
                    "mlp_in\")}}; roles: ", join(role_names()));
  TORCH_CHECK_VALUE(!groups.empty(), "the module has no parameters that require gradients");

  std::vector<OptimizerParamGroup> result;
  for (size_t g = 0; g < groups.size(); ++g) {
    auto options = std::make_unique<EquivariantOptions>(groups[g].first);
    options->param_names(names[g]);
    result.emplace_back(groups[g].second, std::move(options));
  }
  return result;
}

}  // namespace erlangen
