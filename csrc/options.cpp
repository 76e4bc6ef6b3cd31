#include "check.h"
#include "ivalue.h"

#include <c10/util/Exception.h>
#include <erlangen/options.h>
#include <torch/serialize/archive.h>

#include <string_view>

namespace erlangen {

LayoutStep LayoutStep::transpose() { return {"transpose", {}, "", -2}; }
LayoutStep LayoutStep::sections(std::vector<int64_t> sizes, int64_t dim) {
  return {"sections", std::move(sizes), "", dim};
}
LayoutStep LayoutStep::heads(int64_t n, int64_t dim) { return {"heads", {n}, "", dim}; }
LayoutStep LayoutStep::pairs(std::string order, int64_t dim) {
  return {"pairs", {}, std::move(order), dim};
}
LayoutStep LayoutStep::flatten() { return {"flatten", {}, "", -2}; }
LayoutStep LayoutStep::flatten_kernels() { return {"flatten", {}, "kernels", -2}; }

template <typename Self, typename Visitor>
void EquivariantOptions::visit(Self& self, Visitor&& visitor) {
  visitor("lr", self.lr_);
  visitor("update_scale", self.update_scale_);
  visitor("weight_decay", self.weight_decay_);
  visitor("decay", self.decay_);
  visitor("rule", self.rule_);
  visitor("order", self.order_);
  visitor("center", self.center_);
  visitor("layout", self.layout_);
  visitor("support", self.support_);
  visitor("momentum", self.momentum_);
  visitor("nesterov", self.nesterov_);
  visitor("momentum_order", self.momentum_order_);
  visitor("alpha", self.alpha_);
  visitor("adjust_lr_fn", self.adjust_lr_fn_);
  visitor("ns_coefficients", self.ns_coefficients_);
  visitor("ns_steps", self.ns_steps_);
  visitor("ns_method", self.ns_method_);
  visitor("ns_dtype", self.ns_dtype_);
  visitor("ns_eps", self.ns_eps_);
  visitor("betas", self.betas_);
  visitor("eps", self.eps_);
  visitor("state_dtype", self.state_dtype_);
  visitor("stochastic_rounding", self.stochastic_rounding_);
  visitor("seed", self.seed_);
  visitor("maximize", self.maximize_);
  visitor("capturable", self.capturable_);
  visitor("role", self.role_);
  visitor("param_names", self.param_names_);
  visitor("evidence", self.evidence_);
  visitor("why", self.why_);
}

template <typename A, typename B, typename Visitor>
void EquivariantOptions::visit_both(A& a, B& b, Visitor&& visitor) {
  // Both visits see the options in the same order, so the settings pair up by position.
  std::vector<const void*> of_b;
  visit(b, [&](const char*, const auto& setting) { of_b.push_back(&setting); });
  size_t i = 0;
  visit(a, [&](const char*, auto& setting) {
    using SettingOfB = std::remove_reference_t<decltype(setting)>;
    visitor(setting, *static_cast<const SettingOfB*>(of_b[i++]));
  });
}

void EquivariantOptions::fill_from(const EquivariantOptions& defaults) {
  visit_both(*this, defaults, [](auto& mine, const auto& theirs) {
    if (!mine.is_set) mine = theirs;
  });
}

template <typename Self, typename Visitor>
void EquivariantOptions::visit_one(Self& self, const std::string& name, Visitor&& visitor) {
  bool found = false;
  visit(self, [&](const char* option, auto& setting) {
    if (name != option) return;
    visitor(setting);
    found = true;
  });
  TORCH_CHECK_VALUE(found, "unknown option ", repr(name), "; allowed: ", join(names()));
}

void EquivariantOptions::set(const std::string& name, const c10::IValue& value,
                             const std::string& where) {
  visit_one(*this, name, [&](auto& setting) {
    auto converted = setting.value;  // aside, so that a value in error leaves the old one
    from_ivalue(where + name, value, converted);
    setting = {std::move(converted), true};
  });
}

c10::IValue EquivariantOptions::get(const std::string& name) const {
  c10::IValue value;
  visit_one(*this, name, [&](const auto& setting) { value = to_ivalue(setting.value); });
  return value;
}

bool EquivariantOptions::is_set(const std::string& name) const {
  bool result = false;
  visit_one(*this, name, [&](const auto& setting) { result = setting.is_set; });
  return result;
}

std::vector<std::string> EquivariantOptions::names() {
  std::vector<std::string> result;
  const EquivariantOptions options;
  visit(options, [&](const char* name, const auto&) { result.emplace_back(name); });
  return result;
}

void EquivariantOptions::serialize(torch::serialize::OutputArchive& archive) const {
  visit(*this, [&](const char* name, const auto& setting) {
    archive.write(name, to_ivalue(setting.value));
  });
}

void EquivariantOptions::serialize(torch::serialize::InputArchive& archive) {
  visit(*this, [&](const char* name, auto& setting) {
    c10::IValue value;
    const bool found = archive.try_read(name, value) ||
                       (std::string_view(name) == "update_scale" &&
                        archive.try_read("lr_scale", value));  // as version 0.1 called it
    if (!found) return;  // written by a version without this option
    from_ivalue(name, value, setting.value);
    setting.is_set = true;
  });
}

double EquivariantOptions::get_lr() const { return lr(); }
void EquivariantOptions::set_lr(double lr) { this->lr(lr); }

bool EquivariantOptions::operator==(const EquivariantOptions& other) const {
  bool equal = true;
  visit_both(*this, other, [&](const auto& mine, const auto& theirs) {
    equal = equal && mine.value == theirs.value;
  });
  return equal;
}

}  // namespace erlangen
