#include "row_norm_kernel.h"

#include "kernel_step.h"
#include "kernels/cpu/centered_row_norm.h"
#include "kernels/cpu/row_norm.h"
#include "step_parts.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <optional>
#include <tuple>

#ifdef ERLANGEN_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/cuda/centered_row_norm.cuh"
#include "kernels/cuda/row_norm.cuh"
#endif

namespace erlangen {

namespace {

using kernels::RowNormOptions;
using kernels::RowNormTensor;

// The buffers whose rows must be alike, and the parameter as it would lie contiguous.
enum Buffer { kParam, kGrad, kMomentum, kElement };

// ---- Parameters as the kernels take them

// One section of a parameter.
struct Job {
  RowNormTensor tensor;
  RowNormOptions options;
};

// Whether logical rows are those of the tensor as it is stored.
bool has_rows_of(const at::Tensor& tensor, const MatrixView& view) {
  const int64_t cols = tensor.size(-1);
  return merged(view.cols) == merged({{cols, 1}}) && view.offset % cols == 0;
}

std::optional<Job> job_of(const Bucket& bucket, const MatrixParam& member, const MatrixView& view,
                          const StepGroup& group) {
  const EquivariantOptions& o = group.options;
  const at::Tensor& param = group.params[member.index.param];
  const at::Tensor& grad = param.grad();
  const EquivariantParamState& state = *group.states[member.index.param];
  const at::Tensor& momentum = state.momentum_buffer();
  const StepScalars& scalars = group.scalars(bucket.device);
  const bool rounds = rounds_stochastically(o, param);
  const int64_t cols = view.n();
  if (o.support() == "gradient" && !has_rows_of(param, view)) return {};
  if (grad.scalar_type() != param.scalar_type()) return {};
  std::vector<MatrixView> views;
  for (const at::Tensor* tensor : {&param, &grad, &momentum}) {
    const auto own = view_of(view, *tensor);
    if (!own) return {};
    views.push_back(*own);
  }
  views.push_back(view);
  const auto rows = rows_of(views, bucket.rule.center);
  if (!rows) return {};
  const Job job = {.tensor = {.param = element(param, views[kParam].offset),
                              .grad = element(grad, views[kGrad].offset),
                              .momentum = element(momentum, views[kMomentum].offset),
                              .rows = view.count() * view.m(),
                              .inner = rows->inner,
                              .param_strides = rows->strides[kParam],
                              .grad_strides = rows->strides[kGrad],
                              .momentum_strides = rows->strides[kMomentum],
                              .lr = o.lr(),
                              .lr_pointer = address(scalars.lr),
                              .weight_decay = o.weight_decay(),
                              .weight_decay_pointer = address(scalars.weight_decay),
                              .factor = o.update_scale() * shape_scale(bucket.rule, view.m(), cols),
                              .element_strides = rows->strides[kElement],
                              .element_offset = view.offset,
                              .position = member.index.position,
                              .step = 0,
                              .step_pointer = rounds ? address(state.step()) : nullptr},
                   .options = {.cols = cols,
                               .segments = rows->segments,
                               .dtype = kernel_dtype(param),
                               .momentum_dtype = kernel_dtype(momentum),
                               .momentum = o.momentum(),
                               .nesterov = o.nesterov().value_or(false),
                               .maximize = o.maximize(),
                               .gradient_support = o.support() == "gradient",
                               .cautious = o.decay() == "cautious",
                               .stochastic_rounding = rounds,
                               .seed = static_cast<uint64_t>(o.seed()),
                               .found_inf = address(scalars.found_inf),
                               .grad_scale = address(scalars.grad_scale)}};
  const bool supported = bucket.rule.center ? kernels::centered_row_norm_supports(job.options)
                                            : kernels::row_norm_supports(job.options);
  if (!supported) return {};
  return job;
}

constexpr int64_t kGrainElements = 32768;  // at::parallel_for's own grain, in elements

// All jobs in one loop, so that threads meet once however many tensors there are. It runs over
// elements, of which a thread takes the rows that begin among its own.
void run_on_cpu(const std::vector<Job>& jobs) {
  int64_t elements = 0;
  for (const Job& job : jobs) elements += job.tensor.rows * job.options.cols;
  at::parallel_for(0, elements, kGrainElements, [&](int64_t begin, int64_t end) {
    for (const Job& job : jobs) {
      const int64_t rows = job.tensor.rows, cols = job.options.cols;
      const auto first_row = [&](int64_t element) {
        return std::clamp<int64_t>((element + cols - 1) / cols, 0, rows);
      };
      const int64_t first = first_row(begin), last = first_row(end);
      // Each call makes scratch memory of its own.
      if (first < last) kernels::cpu::row_norm_step(job.tensor, job.options, first, last);
      begin -= rows * cols;
      end -= rows * cols;
    }
  });
}

void run_centered_on_cpu(const Job& job) {
  const RowNormTensor& tensor = job.tensor;
  const RowNormOptions& options = job.options;
  const at::Tensor scratch =
      at::empty({kernels::centered_scratch_bytes(tensor, options)}, at::TensorOptions(at::kByte));
  void* memory = scratch.mutable_data_ptr();
  const int64_t chunk = kernels::centered::kChunkRows * options.cols;
  const auto over_chunks = [&](auto&& pass) {
    at::parallel_for(
        0, kernels::cpu::centered_chunks(tensor), std::max<int64_t>(1, kGrainElements / chunk),
        [&](int64_t begin, int64_t end) { pass(tensor, options, memory, begin, end); });
  };
  const auto mean = [&](bool of_units) {
    at::parallel_for(0, kernels::cpu::centered_column_blocks(tensor, options), 1,
                     [&](int64_t begin, int64_t end) {
                       kernels::cpu::centered_row_norm_mean(tensor, options, memory, of_units,
                                                            begin, end);
                     });
  };
  over_chunks(kernels::cpu::centered_row_norm_sums);
  mean(/*of_units=*/false);
  over_chunks(kernels::cpu::centered_row_norm_units);
  mean(/*of_units=*/true);
  over_chunks(kernels::cpu::centered_row_norm_update);
}

#ifdef ERLANGEN_CUDA
bool same_call(const RowNormOptions& a, const RowNormOptions& b) {
  const auto fields = [](const RowNormOptions& o) {
    return std::tie(o.cols, o.dtype, o.momentum_dtype, o.momentum, o.nesterov, o.maximize,
                    o.gradient_support, o.segments, o.cautious, o.stochastic_rounding, o.seed,
                    o.found_inf, o.grad_scale);
  };
  return fields(a) == fields(b);
}

// One launch for all jobs that agree in their options.
void run_on_cuda(const std::vector<Job>& jobs, bool center, at::Device device) {
  const c10::DeviceGuard guard(device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index());
  for (size_t begin = 0; begin < jobs.size();) {
    std::vector<RowNormTensor> tensors;
    size_t end = begin;
    while (end < jobs.size() && same_call(jobs[end].options, jobs[begin].options)) {
      tensors.push_back(jobs[end++].tensor);
    }
    const RowNormOptions& options = jobs[begin].options;
    const auto count = static_cast<int64_t>(tensors.size());
    if (center) {
      int64_t bytes = 0;
      for (const RowNormTensor& tensor : tensors) {
        bytes += kernels::centered_scratch_bytes(tensor, options);
      }
      // Freed before it is used: in stream order, so that nobody else gets it too early.
      const at::Tensor scratch = at::empty({bytes}, at::TensorOptions(device).dtype(at::kByte));
      C10_CUDA_CHECK(kernels::cuda::centered_row_norm_step(tensors.data(), count, options,
                                                           scratch.mutable_data_ptr(), stream));
    } else {
      C10_CUDA_CHECK(kernels::cuda::row_norm_step(tensors.data(), count, options, stream));
    }
    begin = end;
  }
}
#endif

}  // namespace

std::optional<KernelStep> row_norm_kernel_step(const Bucket& bucket,
                                               const std::vector<StepGroup>& groups) {
  if (bucket.rule.rule != "row_norm" || bucket.polar_first) return {};
  if (!has_kernels(bucket.device)) return {};
  const bool center = bucket.rule.center;
  KernelStep step = {center ? Kernel::centered_row_norm : Kernel::row_norm, {}, {}};
  std::vector<Job> jobs;
  for (const MatrixParam& member : bucket.members) {
    for (const MatrixView& view : member.views) {
      const auto job = job_of(bucket, member, view, groups[member.index.group]);
      if (!job) return {};
      jobs.push_back(*job);
    }
    add_dtypes(step.dtypes, {bucket.dtype, momentum_of(groups, member.index).scalar_type()});
  }
  step.run = [&bucket, &groups, center, jobs = std::move(jobs)] {
    count_step(bucket, groups);
    mark_changed(bucket, groups);
    if (bucket.device.is_cpu()) {
      if (center) {
        for (const Job& job : jobs) run_centered_on_cpu(job);
      } else {
        run_on_cpu(jobs);
      }
    }
#ifdef ERLANGEN_CUDA
    if (bucket.device.is_cuda()) run_on_cuda(jobs, center, bucket.device);
#endif
  };
  return step;
}

}  // namespace erlangen
