#include "column_norm_kernel.h"

#include "kernel_step.h"
#include "kernels/cpu/column_norm.h"
#include "step_parts.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

#ifdef ERLANGEN_CUDA
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/cuda/column_norm.cuh"
#endif

namespace erlangen {

namespace {

using kernels::ColumnNormOptions;
using kernels::ColumnNormTensor;
using kernels::ColumnPairs;
using kernels::cpu::ColumnNormBlock;

// ---- Units in memory

// A stack of matrices in one buffer whose columns, or pairs of columns, are the units.
struct Columns {
  int64_t offset;  // of the first element, relative to the tensor's own
  int64_t matrices = 1;
  int64_t rows = 1;
  int64_t cols = 1;
  ColumnPairs pairs = ColumnPairs::none;
  int64_t matrix_stride = 0;
  int64_t stride = 0;  // from row to row

  bool same_units(const Columns& other) const {
    return matrices == other.matrices && rows == other.rows && cols == other.cols &&
           pairs == other.pairs;
  }
};

std::optional<Columns> columns_of(const MatrixView& view, bool units_are_rows) {
  Columns result{view.offset};
  std::vector<Dim> units = view.batch;
  const std::vector<Dim>& inner = units_are_rows ? view.rows : view.cols;
  units.insert(units.end(), inner.begin(), inner.end());
  units = merged(units);
  std::vector<Dim> elements = units_are_rows ? view.cols : view.rows;

  // A unit's outer dimension may be its two columns in each row.
  if (!elements.empty() && elements.front().size == 2) {
    const int64_t step = elements.front().stride;
    const Dim last = units.empty() ? Dim{1, 1} : units.back();
    if (step == 1 && (units.empty() || last.stride == 2)) {
      result.pairs = ColumnPairs::interleaved;
    } else if (step == last.size && last.stride == 1) {
      result.pairs = ColumnPairs::concatenated;
    }
    if (result.pairs != ColumnPairs::none) {
      elements.erase(elements.begin());
      if (units.empty()) units.push_back({1, 1});
      units.back() = {2 * last.size, 1};
    }
  }
  if (elements.size() > 1 || units.empty() || units.size() > 2 || units.back().stride != 1) {
    return {};
  }
  // Rows of one element lie in memory as rows, too: the row-norm kernel's.
  if (units_are_rows && elements.empty() && result.pairs == ColumnPairs::none) return {};
  result.cols = units.back().size;
  result.stride = result.cols;
  if (!elements.empty()) {
    result.rows = elements.front().size;
    result.stride = elements.front().stride;
  }
  if (units.size() == 2) {
    result.matrices = units.front().size;
    result.matrix_stride = units.front().stride;
  }
  return result;
}

bool flattens(const Layout& layout) {
  return std::any_of(layout.begin(), layout.end(),
                     [](const LayoutStep& step) { return step.verb == "flatten"; });
}

// One for each section of the layout.
std::optional<std::vector<Columns>> columns_of(const at::Tensor& tensor, const Layout& layout,
                                               const std::vector<MatrixView>& contiguous_views,
                                               bool units_are_rows) {
  // With strides that do not join, a layout that joins dimensions has no such view.
  if (tensor.is_neg() || (!tensor.is_contiguous() && flattens(layout))) return {};
  std::vector<Columns> result;
  for (const MatrixView& view :
       tensor.is_contiguous()
           ? contiguous_views
           : matrix_views(layout, tensor.sizes(), tensor.strides(), "column_norm")) {
    const auto columns = columns_of(view, units_are_rows);
    if (!columns) return {};
    result.push_back(*columns);
  }
  return result;
}

// ---- Parameters as the kernel takes them

struct Job {
  ColumnNormTensor tensor;
  ColumnNormOptions options;
};

// One for each section; none where the kernel does not take the parameter.
std::vector<Job> jobs_of(const Bucket& bucket, const MatrixParam& member, const StepGroup& group) {
  const EquivariantOptions& o = group.options;
  const at::Tensor& param = group.params[member.index.param];
  const at::Tensor& grad = param.grad();
  const at::Tensor& momentum = group.states[member.index.param]->momentum_buffer();
  const StepScalars& scalars = group.scalars(bucket.device);
  if (grad.scalar_type() != param.scalar_type() || o.support() == "gradient" ||
      rounds_stochastically(o, param)) {
    return {};
  }
  const bool units_are_rows = bucket.rule.rule == "row_norm";
  const auto p = columns_of(param, o.layout(), member.views, units_are_rows);
  const auto g = columns_of(grad, o.layout(), member.views, units_are_rows);
  const auto m = columns_of(momentum, o.layout(), member.views, units_are_rows);
  if (!p || !g || !m) return {};
  std::vector<Job> jobs;
  for (size_t s = 0; s < member.views.size(); ++s) {
    const Columns &columns = (*p)[s], &in_grad = (*g)[s], &in_momentum = (*m)[s];
    if (!columns.same_units(in_grad) || !columns.same_units(in_momentum)) return {};
    const double scale = shape_scale(bucket.rule, member.views[s].m(), member.views[s].n());
    const Job job = {.tensor = {.param = element(param, columns.offset),
                                .grad = element(grad, in_grad.offset),
                                .momentum = element(momentum, in_momentum.offset),
                                .matrices = columns.matrices,
                                .param_stride = columns.stride,
                                .grad_stride = in_grad.stride,
                                .momentum_stride = in_momentum.stride,
                                .param_matrix_stride = columns.matrix_stride,
                                .grad_matrix_stride = in_grad.matrix_stride,
                                .momentum_matrix_stride = in_momentum.matrix_stride,
                                .lr = o.lr(),
                                .lr_pointer = address(scalars.lr),
                                .weight_decay = o.weight_decay(),
                                .weight_decay_pointer = address(scalars.weight_decay),
                                .factor = o.update_scale() * scale},
                     .options = {.rows = columns.rows,
                                 .cols = columns.cols,
                                 .pairs = columns.pairs,
                                 .dtype = kernel_dtype(param),
                                 .momentum_dtype = kernel_dtype(momentum),
                                 .momentum = o.momentum(),
                                 .nesterov = o.nesterov().value_or(false),
                                 .maximize = o.maximize(),
                                 .cautious = o.decay() == "cautious",
                                 .found_inf = address(scalars.found_inf),
                                 .grad_scale = address(scalars.grad_scale)}};
    if (!kernels::column_norm_supports(job.options)) return {};
    jobs.push_back(job);
  }
  return jobs;
}

// ---- CPU

// Matrices of up to this many elements stay in a core's own cache from one pass to the next.
constexpr int64_t kElementsInCache = 65536;
constexpr int64_t kGrainElements = 32768;  // at::parallel_for's own grain, in elements
constexpr int64_t kTileCols = 1024;

// Small matrices: all passes over one, then the next.
void run_whole_matrices(const Job& job, void* scratch) {
  const ColumnNormOptions& o = job.options;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (o.rows * o.cols));
  at::parallel_for(0, job.tensor.matrices, grain, [&](int64_t begin, int64_t end) {
    for (int64_t matrix = begin; matrix < end; ++matrix) {
      const ColumnNormBlock block = {matrix, 0, o.rows, 0, o.cols};
      kernels::cpu::column_norm_sum(job.tensor, o, block, scratch);
      kernels::cpu::column_norm_lengths(job.tensor, o, block, scratch);
      kernels::cpu::column_norm_update(job.tensor, o, block, scratch);
    }
  });
}

// Larger ones: each pass over all of them, in blocks of a chunk of rows by a tile of columns.
void run_passes(const Job& job, void* scratch) {
  const ColumnNormOptions& o = job.options;
  constexpr int64_t kRows = kernels::cpu::kColumnNormChunkRows;
  const int64_t chunks = (o.rows + kRows - 1) / kRows;
  const int64_t tiles = (o.cols + kTileCols - 1) / kTileCols;
  const int64_t blocks = job.tensor.matrices * chunks * tiles;
  const auto block = [&](int64_t i) {
    const int64_t row = i / tiles % chunks * kRows;
    const int64_t col = i % tiles * kTileCols;
    return ColumnNormBlock{i / tiles / chunks, row, std::min(row + kRows, o.rows), col,
                           std::min(col + kTileCols, o.cols)};
  };
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels::cpu::column_norm_sum(job.tensor, o, block(i), scratch);
    }
  });
  at::parallel_for(0, job.tensor.matrices * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ColumnNormBlock columns = block(i % tiles);
      columns.matrix = i / tiles;
      kernels::cpu::column_norm_lengths(job.tensor, o, columns, scratch);
    }
  });
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    // Backwards: what the first pass has read last may still be in a cache.
    for (int64_t i = end - 1; i >= begin; --i) {
      kernels::cpu::column_norm_update(job.tensor, o, block(i), scratch);
    }
  });
}

void run_on_cpu(const Job& job) {
  const int64_t bytes = kernels::cpu::column_norm_scratch_bytes(job.tensor, job.options);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  if (job.options.rows * job.options.cols <= kElementsInCache) {
    run_whole_matrices(job, scratch.get());
  } else {
    run_passes(job, scratch.get());
  }
}

#ifdef ERLANGEN_CUDA
bool same_call(const ColumnNormOptions& a, const ColumnNormOptions& b) {
  const auto fields = [](const ColumnNormOptions& o) {
    return std::tie(o.rows, o.cols, o.pairs, o.dtype, o.momentum_dtype, o.momentum, o.nesterov,
                    o.maximize, o.cautious, o.found_inf, o.grad_scale);
  };
  return fields(a) == fields(b);
}

// One call for all jobs that agree in their options.
void run_on_cuda(std::vector<Job> jobs, at::Device device) {
  const c10::DeviceGuard guard(device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index());
  while (!jobs.empty()) {
    const ColumnNormOptions options = jobs.front().options;
    std::vector<ColumnNormTensor> tensors;
    std::vector<Job> others;
    for (const Job& job : jobs) {
      if (same_call(job.options, options)) {
        tensors.push_back(job.tensor);
      } else {
        others.push_back(job);
      }
    }
    const auto count = static_cast<int64_t>(tensors.size());
    const at::Tensor scratch =
        at::empty({kernels::cuda::column_norm_scratch_bytes(tensors.data(), count, options)},
                  at::device(device).dtype(at::kByte));
    C10_CUDA_CHECK(kernels::cuda::column_norm_step(tensors.data(), count, options,
                                                   scratch.data_ptr(), stream));
    jobs = std::move(others);
  }
}
#endif

}  // namespace

std::optional<KernelStep> column_norm_kernel_step(const Bucket& bucket,
                                                  const std::vector<StepGroup>& groups) {
  const std::string& rule = bucket.rule.rule;
  if ((rule != "row_norm" && rule != "column_norm") || bucket.rule.center || bucket.polar_first ||
      !has_kernels(bucket.device)) {
    return {};
  }
  KernelStep step = {Kernel::column_norm, {}, {}};
  std::vector<Job> jobs;
  for (const MatrixParam& member : bucket.members) {
    const std::vector<Job> more = jobs_of(bucket, member, groups[member.index.group]);
    if (more.empty()) return {};
    jobs.insert(jobs.end(), more.begin(), more.end());
    add_dtypes(step.dtypes, {bucket.dtype, momentum_of(groups, member.index).scalar_type()});
  }
  step.run = [&bucket, &groups, jobs = std::move(jobs)] {
    if (bucket.device.is_cpu()) {
      for (const Job& job : jobs) run_on_cpu(job);
    }
#ifdef ERLANGEN_CUDA
    if (bucket.device.is_cuda()) run_on_cuda(jobs, bucket.device);
#endif
    mark_changed(bucket, groups);
  };
  return step;
}

}  // namespace erlangen
