#include "plan.h"

#include "check.h"
#include "device.h"

#include <c10/util/Exception.h>
#include <c10/util/FunctionRef.h>
#include <c10/util/strides.h>

#include <algorithm>

namespace erlangen {

namespace {

// How much of a bucket is computed at once: 64 Mi elements, 256 MiB in float32. A batch of small
// matrices gains nothing beyond that, and scratch stays bounded however large the model is.
constexpr int64_t kBatchElements = int64_t{1} << 26;

bool same_shapes(const std::vector<MatrixView>& a, const std::vector<MatrixView>& b) {
  return std::equal(
      a.begin(), a.end(), b.begin(), b.end(),
      [](const MatrixView& x, const MatrixView& y) { return x.m() == y.m() && x.n() == y.n(); });
}

}  // namespace

const StepScalars& StepGroup::scalars(at::Device device) const {
  static const StepScalars kNone;
  for (const auto& [where, found] : placed) {
    if (where == device) return found;
  }
  return kNone;
}

void Plan::update(const std::vector<StepGroup>& groups) {
  std::vector<EquivariantOptions> options;
  std::vector<GroupSource> sources;
  std::vector<std::vector<ParamMemory>> memory;
  for (size_t g = 0; g < groups.size(); ++g) {
    const StepGroup& group = groups[g];
    options.push_back(group.options);
    if (g >= checked_.size() || !(checked_[g] == group.options)) {
      check_options(group.options, describe_group(g, group.options));
    }
    const auto here = [&] { return describe_group(g, group.options); };
    check_scalar(group.lr, "lr", here);
    check_scalar(group.weight_decay, "weight_decay", here);
    GroupSource& source =
        sources.emplace_back(GroupSource{RuleOptions::from(group.options),
                                         group.options.momentum_order() == "polar_first",
                                         group.options.layout(),
                                         group.options.capturable(),
                                         {}});
    memory.emplace_back(group.params.begin(), group.params.end());
    for (size_t p = 0; p < group.params.size(); ++p) {
      const at::Tensor& param = group.params[p];
      const at::Tensor& grad = param.grad();
      source.params.push_back(
          {param.sizes().vec(), param.scalar_type(), param.device(), grad.defined()});
      if (!grad.defined()) continue;
      const auto where = [&] { return describe_param(g, p, group.options); };
      check_grad(grad, param, where);
      check_state(*group.states[p], param, where);
    }
  }
  if (memory != memory_) check_params_apart(memory);
  if (sources != sources_) make(groups, sources);
  memory_ = std::move(memory);
  sources_ = std::move(sources);
  checked_ = std::move(options);
}

void Plan::make(const std::vector<StepGroup>& groups, const std::vector<GroupSource>& sources) {
  std::vector<Bucket> buckets;
  std::vector<ParamIndex> adamw, empty;
  std::vector<at::Device> devices;
  int64_t position = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    const GroupSource& source = sources[g];
    for (size_t p = 0; p < source.params.size(); ++p, ++position) {
      const at::Tensor& param = groups[g].params[p];
      const std::string where = describe_param(g, p, groups[g].options);
      check_param(param, groups[g].options, where);
      if (source.capturable) check_capturable(param, where);
      if (std::find(devices.begin(), devices.end(), param.device()) == devices.end()) {
        check_device(param.device(), where);
        devices.push_back(param.device());
      }
      if (!source.params[p].has_grad) continue;
      const ParamIndex index{g, p, position};
      if (source.rule.rule == "adamw") {
        adamw.push_back(index);
        continue;
      }
      if (param.numel() == 0) {
        empty.push_back(index);
        continue;
      }
      auto views =
          matrix_views(source.layout, param.sizes(), c10::contiguous_strides(param.sizes()), where);
      auto bucket = std::find_if(buckets.begin(), buckets.end(), [&](const Bucket& candidate) {
        return candidate.rule == source.rule && candidate.polar_first == source.polar_first &&
               candidate.dtype == param.scalar_type() && candidate.device == param.device() &&
               same_shapes(candidate.members.front().views, views) &&
               candidate.elements + param.numel() <= kBatchElements;
      });
      if (bucket == buckets.end()) {
        buckets.push_back(
            {source.rule, source.polar_first, param.scalar_type(), param.device(), {}});
        bucket = buckets.end() - 1;
      }
      bucket->elements += param.numel();
      bucket->members.push_back({index, std::move(views)});
    }
  }
  buckets_ = std::move(buckets);
  adamw_ = std::move(adamw);
  empty_ = std::move(empty);
  devices_ = std::move(devices);
}

}  // namespace erlangen
