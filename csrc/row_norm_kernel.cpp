#include "row_norm_kernel.h"

#include "kernels/cpu/row_norm.h"
#include "step.h"

#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <optional>

#ifdef ERLANGEN_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/cuda/row_norm.cuh"
#endif

namespace erlangen {

namespace {

using kernels::DType;
using kernels::RowNormOptions;
using kernels::RowNormTensor;

std::atomic<int64_t> steps_by_kernel = 0;

// The stride between the logical rows of `tensor`, where they follow each other at one stride and
// their elements lie side by side.
std::optional<int64_t> row_stride(const at::Tensor& tensor, const Layout& layout,
                                  const std::vector<MatrixView>& contiguous_views) {
  const auto views = tensor.is_contiguous()
                         ? contiguous_views
                         : matrix_views(layout, tensor.sizes(), tensor.strides(), "row_norm");
  if (views.size() != 1 || views[0].cols.size() > 1) return {};
  if (!views[0].cols.empty() && views[0].cols[0].stride != 1) return {};
  std::vector<Dim> rows = views[0].batch;
  rows.insert(rows.end(), views[0].rows.begin(), views[0].rows.end());
  rows = merged(rows);
  if (rows.size() > 1) return {};
  return rows.empty() ? views[0].n() : rows[0].stride;
}

struct Job {
  RowNormTensor tensor;
  RowNormOptions options;
  const at::Tensor* param;
  const at::Tensor* momentum;
};

std::optional<Job> job_of(const Bucket& bucket, const MatrixParam& member, const StepGroup& group) {
  const EquivariantOptions& o = group.options;
  const at::Tensor& param = group.params[member.index.param];
  const at::Tensor& grad = param.grad();
  const at::Tensor& momentum = group.states[member.index.param]->momentum_buffer();
  const int64_t cols = member.views[0].n();
  if (group.scalars(bucket.device).any()) return {};  // the kernel takes numbers
  if (o.decay() == "cautious" || grad.scalar_type() != param.scalar_type() ||
      (o.stochastic_rounding() && param.scalar_type() == at::kBFloat16) ||
      (o.support() == "gradient" && cols != param.size(-1))) {
    return {};
  }
  const auto param_stride = row_stride(param, o.layout(), member.views);
  const auto grad_stride = row_stride(grad, o.layout(), member.views);
  const auto momentum_stride = row_stride(momentum, o.layout(), member.views);
  if (!param_stride || !grad_stride || !momentum_stride) return {};
  const Job job = {.tensor = {.param = param.data_ptr(),
                              .grad = grad.data_ptr(),
                              .momentum = momentum.data_ptr(),
                              .rows = param.numel() / cols,
                              .param_stride = *param_stride,
                              .grad_stride = *grad_stride,
                              .momentum_stride = *momentum_stride,
                              .decay = 1.0 - o.lr() * o.weight_decay(),
                              .step_size = o.lr() * o.lr_scale() *
                                           shape_scale(bucket.rule, member.views[0].m(), cols)},
                   .options = {.cols = cols,
                               .dtype = kernel_dtype(param),
                               .momentum_dtype = kernel_dtype(momentum),
                               .momentum = o.momentum(),
                               .nesterov = o.nesterov().value_or(false),
                               .maximize = o.maximize(),
                               .gradient_support = o.support() == "gradient"},
                   .param = &param,
                   .momentum = &momentum};
  if (!kernels::row_norm_supports(job.options)) return {};
  return job;
}

void run_on_cpu(const Job& job) {
  constexpr int64_t kGrainElements = 32768;  // at::parallel_for's own grain, in elements
  const int64_t grain = std::max<int64_t>(1, kGrainElements / job.options.cols);
  at::parallel_for(0, job.tensor.rows, grain, [&](int64_t begin, int64_t end) {
    kernels::cpu::row_norm_step(job.tensor, job.options, begin, end);
  });
}

#ifdef ERLANGEN_CUDA
bool same_call(const RowNormOptions& a, const RowNormOptions& b) {
  const auto fields = [](const RowNormOptions& o) {
    return std::tie(o.cols, o.dtype, o.momentum_dtype, o.momentum, o.nesterov, o.maximize,
                    o.gradient_support);
  };
  return fields(a) == fields(b);
}

// One launch for all jobs that agree in their options.
void run_on_cuda(const std::vector<Job>& jobs, at::Device device) {
  const c10::DeviceGuard guard(device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index());
  for (size_t begin = 0; begin < jobs.size();) {
    std::vector<RowNormTensor> tensors;
    size_t end = begin;
    while (end < jobs.size() && same_call(jobs[end].options, jobs[begin].options)) {
      tensors.push_back(jobs[end++].tensor);
    }
    C10_CUDA_CHECK(kernels::cuda::row_norm_step(
        tensors.data(), static_cast<int64_t>(tensors.size()), jobs[begin].options, stream));
    begin = end;
  }
}
#endif

}  // namespace

int64_t kernel_count() { return steps_by_kernel; }

void count_kernel_steps(int64_t steps) { steps_by_kernel += steps; }

DType kernel_dtype(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return DType::float64;
    case at::kBFloat16: return DType::bfloat16;
    case at::kHalf: return DType::float16;
    default: return DType::float32;
  }
}

bool has_kernels(at::Device device) {
#ifdef ERLANGEN_CUDA
  return device.is_cpu() || device.is_cuda();
#else
  if (device.is_cuda()) {
    TORCH_WARN_ONCE(
        "erlangen was built without CUDA kernels and steps CUDA parameters with plain ATen "
        "operations. Install it from source with nvcc of torch's CUDA major version on PATH.");
  }
  return device.is_cpu();
#endif
}

bool row_norm_kernel_step(const Bucket& bucket, const std::vector<StepGroup>& groups) {
  if (bucket.rule.rule != "row_norm" || bucket.rule.center || bucket.polar_first) return false;
  if (!has_kernels(bucket.device)) return false;
  std::vector<Job> jobs;
  for (const MatrixParam& member : bucket.members) {
    const auto job = job_of(bucket, member, groups[member.index.group]);
    if (!job) return false;
    jobs.push_back(*job);
  }
#ifdef ERLANGEN_CUDA
  if (bucket.device.is_cuda()) run_on_cuda(jobs, bucket.device);
#endif
  for (const Job& job : jobs) {
    if (bucket.device.is_cpu()) run_on_cpu(job);
    // The kernel writes behind autograd's back.
    job.param->unsafeGetTensorImpl()->bump_version();
    job.momentum->unsafeGetTensorImpl()->bump_version();
  }
  count_kernel_steps(static_cast<int64_t>(jobs.size()));
  return true;
}

}  // namespace erlangen
