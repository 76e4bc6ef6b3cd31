#include "row_norm_kernel.h"

#include "kernels/cpu/centered_row_norm.h"
#include "kernels/cpu/row_norm.h"
#include "step.h"
#include "step_parts.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <set>
#include <tuple>

#ifdef ERLANGEN_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/cuda/centered_row_norm.cuh"
#include "kernels/cuda/row_norm.cuh"
#endif

namespace erlangen {

namespace {

using kernels::DType;
using kernels::RowNormOptions;
using kernels::RowNormTensor;

std::atomic<int64_t> steps_by_kernel = 0;
std::atomic<bool> kernels_in_use = true;

// ---- Logical rows in memory

using Dims = std::vector<Dim>;

// Appends, innermost first, the dimensions of a tensor with these sizes and strides through which
// `dim`, a dimension of the contiguous tensor, steps from `offset` on. False where it crosses from
// one into the next in between.
bool append_strided(const Dim& dim, int64_t offset, const at::Tensor& tensor, Dims* result) {
  int64_t size = dim.size, step = dim.stride;
  int64_t unit = 1;  // what one index of dimension k covers in the contiguous tensor
  for (int64_t k = tensor.dim() - 1; k >= 0 && size > 1; --k) {
    const int64_t extent = tensor.size(k);
    if (step < unit * extent) {
      const int64_t stride = step / unit;
      const int64_t taken = std::min(size, extent / stride);
      const int64_t first = offset / unit % extent;
      if (step % unit != 0 || size % taken != 0 || first + (taken - 1) * stride >= extent) {
        return false;
      }
      // What goes on in the next dimension must have gone through the whole of this one.
      if (taken < size && taken * stride != extent) return false;
      result->push_back({taken, stride * tensor.stride(k)});
      size /= taken;
      step *= taken;
    }
    unit *= extent;
  }
  return size == 1;
}

// The view of the contiguous tensor as one of `tensor`, which has its sizes.
std::optional<MatrixView> view_of(const MatrixView& contiguous, const at::Tensor& tensor) {
  if (tensor.is_contiguous()) return contiguous;
  MatrixView result;
  int64_t unit = 1;
  for (int64_t k = tensor.dim() - 1; k >= 0; --k) {
    result.offset += contiguous.offset / unit % tensor.size(k) * tensor.stride(k);
    unit *= tensor.size(k);
  }
  for (const auto side : {&MatrixView::batch, &MatrixView::rows, &MatrixView::cols}) {
    Dims& dims = result.*side;
    for (auto dim = (contiguous.*side).rbegin(); dim != (contiguous.*side).rend(); ++dim) {
      if (!append_strided(*dim, contiguous.offset, tensor, &dims)) return {};
    }
    std::reverse(dims.begin(), dims.end());
  }
  return result;
}

// Dimensions that several buffers share, with a stride for each buffer.
struct JointDim {
  int64_t size;
  std::vector<int64_t> strides;
};

// The fewest dimensions, outermost first, in which all buffers step through their own `dims`; these
// have the same number of elements. Nothing where they split it at places that do not nest.
std::optional<std::vector<JointDim>> joint(const std::vector<Dims>& buffers) {
  std::set<int64_t> splits;  // elements inside of a boundary between two dimensions
  for (const Dims& dims : buffers) {
    int64_t inside = 1;
    for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) splits.insert(inside *= dim->size);
  }
  std::vector<JointDim> result;  // innermost first
  int64_t inside = 1;
  for (const int64_t split : splits) {
    if (split % inside != 0) return {};
    JointDim next{split / inside, {}};
    for (const Dims& dims : buffers) {
      int64_t begin = 1;
      for (auto dim = dims.rbegin(); dim != dims.rend(); begin *= dim->size, ++dim) {
        if (inside >= begin && inside < begin * dim->size) {
          next.strides.push_back(inside / begin * dim->stride);
        }
      }
    }
    inside = split;
    if (next.size == 1) continue;
    const auto continues = [&](const JointDim& inner) {
      for (size_t i = 0; i < buffers.size(); ++i) {
        if (next.strides[i] != inner.strides[i] * inner.size) return false;
      }
      return true;
    };
    if (!result.empty() && continues(result.back())) {
      result.back().size *= next.size;
    } else {
      result.push_back(std::move(next));
    }
  }
  std::reverse(result.begin(), result.end());
  return result;
}

enum Buffer { kParam, kGrad, kMomentum, kElement, kBuffers };

// How the logical rows lie in all buffers: as the kernels can say it.
struct Rows {
  int64_t inner = 1;
  int64_t segments = 1;
  kernels::RowStrides strides[kBuffers] = {};
};

// Columns are one run, or two halves; rows have one stride, or those of a batch have one and those
// of a matrix another. With `keep_matrices` a block of rows is a matrix.
std::optional<Rows> rows_of(const std::vector<MatrixView>& views, bool keep_matrices) {
  std::vector<Dims> batches, rows, cols;
  for (const MatrixView& view : views) {
    batches.push_back(view.batch);
    rows.push_back(view.rows);
    cols.push_back(view.cols);
    if (!keep_matrices) {
      rows.back().insert(rows.back().begin(), view.batch.begin(), view.batch.end());
      batches.back().clear();
    }
  }
  auto outer = joint(batches), inner = joint(rows), runs = joint(cols);
  if (!outer || !inner || !runs) return {};
  if (!keep_matrices && inner->size() == 2) {
    outer->push_back(inner->front());
    inner->erase(inner->begin());
  }
  if (outer->size() > 1 || inner->size() > 1 || runs->size() > 2) return {};
  const auto contiguous = [](const JointDim& dim) {
    return std::all_of(dim.strides.begin(), dim.strides.end(), [](int64_t s) { return s == 1; });
  };
  const bool one_run = runs->empty() || (runs->size() == 1 && contiguous(runs->front()));
  const bool two_runs =
      !runs->empty() && runs->front().size == 2 && (runs->size() == 1 || contiguous(runs->back()));
  if (!one_run && !two_runs) return {};
  Rows result;
  result.inner = inner->empty() ? 1 : inner->front().size;
  result.segments = one_run ? 1 : 2;
  for (int i = 0; i < kBuffers; ++i) {
    if (!outer->empty()) result.strides[i].outer = outer->front().strides[i];
    if (!inner->empty()) result.strides[i].row = inner->front().strides[i];
    if (!one_run) result.strides[i].segment = runs->front().strides[i];
  }
  return result;
}

// ---- Parameters as the kernels take them

// One section of a parameter.
struct Job {
  RowNormTensor tensor;
  RowNormOptions options;
};

void* element(const at::Tensor& tensor, int64_t offset) {
  return static_cast<char*>(tensor.data_ptr()) + offset * tensor.element_size();
}

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
                              .factor = o.lr_scale() * shape_scale(bucket.rule, view.m(), cols),
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

void run_on_cpu(const Job& job) {
  const int64_t grain = std::max<int64_t>(1, kGrainElements / job.options.cols);
  at::parallel_for(0, job.tensor.rows, grain, [&](int64_t begin, int64_t end) {
    kernels::cpu::row_norm_step(job.tensor, job.options, begin, end);
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

int64_t kernel_count() { return steps_by_kernel; }

void use_kernels(bool use) { kernels_in_use = use; }

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
  if (!kernels_in_use) return false;
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
  if (bucket.rule.rule != "row_norm" || bucket.polar_first) return false;
  if (!has_kernels(bucket.device)) return false;
  std::vector<Job> jobs;
  for (const MatrixParam& member : bucket.members) {
    for (const MatrixView& view : member.views) {
      const auto job = job_of(bucket, member, view, groups[member.index.group]);
      if (!job) return false;
      jobs.push_back(*job);
    }
  }
  for (const MatrixParam& member : bucket.members) {
    const StepGroup& group = groups[member.index.group];
    const EquivariantParamState& state = *group.states[member.index.param];
    if (counts_steps(group.options, group.params[member.index.param])) {
      count_step({state.step()}, group.scalars(bucket.device));
    }
    // The kernel writes behind autograd's back.
    group.params[member.index.param].unsafeGetTensorImpl()->bump_version();
    state.momentum_buffer().unsafeGetTensorImpl()->bump_version();
  }
  if (bucket.device.is_cpu()) {
    for (const Job& each : jobs) bucket.rule.center ? run_centered_on_cpu(each) : run_on_cpu(each);
  }
#ifdef ERLANGEN_CUDA
  if (bucket.device.is_cuda()) run_on_cuda(jobs, bucket.rule.center, bucket.device);
#endif
  count_kernel_steps(static_cast<int64_t>(bucket.members.size()));
  return true;
}

}  // namespace erlangen
