#include "plan.h"

#include "check.h"

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
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const MatrixView& x, const MatrixView& y) {
                      return x.m() == y.m() && x.n() == y.n();
                    });
}

}  // namespace

void Plan::update(const std::vector<StepGroup>& groups) {
  std::vector<EquivariantOptions> options;
  std::vector<std::vector<Source>> sources;
  for (size_t g = 0; g < groups.size(); ++g) {
    const StepGroup& group = groups[g];
    options.push_back(group.options);
    auto& of_group = sources.emplace_back();
    for (size_t p = 0; p < group.params.size(); ++p) {
      const at::Tensor& param = group.params[p];
      const at::Tensor& grad = param.grad();
      of_group.push_back(
          {param.sizes().vec(), param.scalar_type(), param.device(), grad.defined()});
      if (!grad.defined()) continue;
      const auto where = [&] { return describe_param(g, p, group.options); };
      check_grad(grad, param, where);
      check_state(*group.states[p], param, where);
    }
  }
  if (options == options_ && sources == sources_) return;

  std::vector<Bucket> buckets;
  std::vector<ParamIndex> adamw;
  int64_t position = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    const EquivariantOptions& group_options = options[g];
    check_options(group_options, describe_group(g, group_options));
    const RuleOptions rule = RuleOptions::from(group_options);
    const bool polar_first = group_options.momentum_order() == "polar_first";
    for (size_t p = 0; p < sources[g].size(); ++p, ++position) {
      const at::Tensor& param = groups[g].params[p];
      const std::string where = describe_param(g, p, group_options);
      check_param(param, group_options, where);
      if (!param.grad().defined()) continue;
      const ParamIndex index{g, p, position};
      if (rule.rule == "adamw") {
        adamw.push_back(index);
        continue;
      }
      const auto strides = c10::contiguous_strides(param.sizes());
      auto views = matrix_views(group_options.layout(), param.sizes(), strides, where);
      auto bucket = std::find_if(buckets.begin(), buckets.end(), [&](const Bucket& candidate) {
        return candidate.rule == rule && candidate.polar_first == polar_first &&
               candidate.dtype == param.scalar_type() && candidate.device == param.device() &&
               same_shapes(candidate.members.front().views, views) &&
               candidate.elements + param.numel() <= kBatchElements;
      });
      if (bucket == buckets.end()) {
        buckets.push_back({rule, polar_first, param.scalar_type(), param.device(), {}});
        bucket = buckets.end() - 1;
      }
      bucket->elements += param.numel();
      bucket->members.push_back({index, std::move(views)});
    }
  }
  options_ = std::move(options);
  sources_ = std::move(sources);
  buckets_ = std::move(buckets);
  adamw_ = std::move(adamw);
}

}  // namespace erlangen
