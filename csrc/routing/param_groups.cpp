#include "check.h"
#include "ivalue.h"
#include "routing/findings.h"
#include "routing/messages.h"
#include "routing/overrides.h"
#include "routing/reading.h"

#include <c10/util/Exception.h>
#include <erlangen/routing.h>

#include <algorithm>
#include <set>
#include <unordered_map>

namespace erlangen {

namespace nn = torch::nn;
using torch::optim::OptimizerParamGroup;

namespace {

constexpr int kMostNames = 16;         // that a shared tensor can be called by
constexpr size_t kLongestName = 4096;  // of those after the first

// The names of each parameter, as many as fit: nested sharing gives exponentially many.
std::unordered_map<const void*, std::vector<std::string>> aliases_of(const Model& model) {
  std::unordered_map<const void*, std::vector<std::string>> names;
  std::vector<int> visits(model.nodes.size());
  std::vector<std::pair<std::string, size_t>> stack = {{"", 0}};
  while (!stack.empty()) {
    const auto [prefix, place] = std::move(stack.back());
    stack.pop_back();
    if (++visits[place] > kMostNames || prefix.size() > kLongestName) continue;
    for (const auto& [name, tensor] : model.nodes[place].tensors) {
      names[tensor.unsafeGetTensorImpl()].push_back(prefix + name);
    }
    const auto& held = model.nodes[place].held;
    for (size_t i = held.size(); i-- > 0;) {
      const auto& [name, child] = held[i];
      stack.emplace_back(prefix + name + ".", child);
    }
  }
  return names;
}

struct Resolved {
  EquivariantOptions options;
  bool is_chosen = false;   // the role is the caller's word
  bool has_layout = false;  // and so is the layout
};

// Role and options of a parameter: what the caller says of it, what was found, what the role
// brings.
Resolved resolve(Sayings& sayings, const std::vector<std::string>& names, const Finding& finding,
                 const std::string& adjust_lr_fn) {
  EquivariantOptions options = sayings.of_names(names);
  // What is said of the role that was found may name another role, whose own sayings count more.
  EquivariantOptions of_found;
  if (options.role().empty()) of_found = sayings.of_role(finding.role);
  std::string role = options.role();
  if (role.empty()) role = of_found.role();
  const bool is_chosen = !role.empty();
  if (role.empty()) role = finding.role;
  options.role(role).fill_from(sayings.of_role(role));
  options.fill_from(of_found);
  const bool has_layout = options.is_set("layout");
  const std::string scale = options.is_set("adjust_lr_fn") ? options.adjust_lr_fn() : adjust_lr_fn;
  EquivariantOptions of_role = role_options(role, scale);
  // How the tensor is stored comes before how the role looks at it.
  Layout layout = role == finding.role ? finding.layout : finding.storage;
  layout.insert(layout.end(), of_role.layout().begin(), of_role.layout().end());
  of_role.layout(std::move(layout));
  if (role == finding.role && finding.center) of_role.center(*finding.center);
  // What the role brings is for its own rule.
  const std::string& rule = options.rule().empty() ? of_role.rule() : options.rule();
  const std::string own_scale = rule == "adamw" ? EquivariantOptions().adjust_lr_fn() : scale;
  if (rule == "adamw") of_role.layout({}).center(false).update_scale(1.0);
  if (of_role.adjust_lr_fn() != own_scale) of_role.adjust_lr_fn(own_scale);
  options.fill_from(of_role);
  return {std::move(options), is_chosen, has_layout};
}

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

namespace {

std::string with_layout(std::string why) {
  const std::string open = kOpenHeads;
  if (why.ends_with(open)) why.resize(why.size() - open.size());
  return why + "; layout: an override";
}

struct Group {
  EquivariantOptions options;
  std::vector<torch::Tensor> params;
  EquivariantOptions::Strings names, evidence, why;
};

// What is only assumed, and of how much.
struct Unsure {
  std::vector<AssumedParam> params;
  int64_t matrices = 0, elements = 0;
};

void tell(const Unsure& unsure, const std::vector<std::string>& names, bool strict) {
  if (unsure.params.empty()) return;
  const auto entry = [](const std::string& name, const std::string& role) {
    return c10::str("{", repr(name), ", EquivariantOptions().role(", repr(role), ")}");
  };
  const std::string message =
      assumed_message(unsure.params, names, unsure.matrices, unsure.elements, strict,
                      {"Overrides overrides = {", "};", entry, "{LayoutStep::heads(8, -2)}"});
  TORCH_CHECK_VALUE(!strict, message);
  TORCH_WARN(message);
}

}  // namespace

std::vector<OptimizerParamGroup> param_groups(const nn::Module& module, const Overrides& overrides,
                                              const std::string& adjust_lr_fn, bool strict) {
  const Model model(module);
  const auto findings = decide(model);
  auto aliases = aliases_of(model);
  Sayings sayings(overrides);
  std::vector<Group> groups;
  std::vector<std::string> trainable, frozen;
  std::set<std::string> roles;
  Unsure unsure;
  for (const auto& [name, param] : model.named_parameters()) {
    if (!param.requires_grad()) {
      frozen.push_back(name);
      continue;
    }
    trainable.push_back(name);
    const Finding& finding = findings.at(param.unsafeGetTensorImpl());
    std::vector<std::string>& names = aliases[param.unsafeGetTensorImpl()];
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      names.insert(names.begin(), name);
    }
    const auto [options, is_chosen, has_layout] = resolve(sayings, names, finding, adjust_lr_fn);
    roles.insert(options.role());
    if (param.dim() >= 2) {
      ++unsure.matrices;
      unsure.elements += param.numel();
    }
    if (!is_chosen && finding.grade == Grade::assumed && param.numel() > 0) {
      unsure.params.push_back({name, param.sizes().vec(), finding.role, finding.why});
    }
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&, &o = options](const Group& g) { return g.options == o; });
    if (group == groups.end()) group = groups.insert(group, Group{options, {}, {}, {}, {}});
    group->params.push_back(param);
    group->names.push_back(name);
    group->evidence.push_back(name_of(is_chosen ? Grade::declared : finding.grade));
    group->why.push_back(is_chosen    ? "an override"
                         : has_layout ? with_layout(finding.why)
                                      : finding.why);
  }
  TORCH_CHECK_VALUE(!groups.empty(), "the module has no parameter that requires a gradient");
  sayings.check_used(trainable, frozen, roles);
  tell(unsure, trainable, strict);

  std::vector<OptimizerParamGroup> result;
  for (Group& group : groups) {
    auto options = std::make_unique<EquivariantOptions>(std::move(group.options));
    options->param_names(group.names).evidence(group.evidence).why(group.why);
    result.emplace_back(std::move(group.params), std::move(options));
  }
  return result;
}

}  // namespace erlangen
