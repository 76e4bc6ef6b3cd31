#include "kernel_step.h"

#include "step.h"
#include "step_parts.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <set>

namespace erlangen {

namespace {

std::atomic<int64_t> steps_by_kernel = 0;
std::atomic<bool> kernels_in_use = true;

}  // namespace

int64_t kernel_count() { return steps_by_kernel; }

void use_kernels(bool use) { kernels_in_use = use; }

void count_kernel_steps(int64_t steps) { steps_by_kernel += steps; }

kernels::DType kernel_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble: return kernels::DType::float64;
    case at::kBFloat16: return kernels::DType::bfloat16;
    case at::kHalf: return kernels::DType::float16;
    case at::kFloat: return kernels::DType::float32;
    default: TORCH_INTERNAL_ASSERT(false, "no kernel computes in ", dtype);
  }
}

kernels::DType kernel_dtype(const at::Tensor& tensor) { return kernel_dtype(tensor.scalar_type()); }

void add_dtypes(std::vector<Dtypes>& all, const Dtypes& dtypes) {
  if (std::find(all.begin(), all.end(), dtypes) == all.end()) all.push_back(dtypes);
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

void* element(const at::Tensor& tensor, int64_t offset) {
  return static_cast<char*>(tensor.data_ptr()) + offset * tensor.element_size();
}

void mark_changed(const Bucket& bucket, const std::vector<StepGroup>& groups) {
  for (const MatrixParam& member : bucket.members) {
    param_of(groups, member.index).unsafeGetTensorImpl()->bump_version();
    state_of(groups, member.index).momentum_buffer().unsafeGetTensorImpl()->bump_version();
  }
}

// ---- Logical rows in memory

namespace {

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

}  // namespace

std::optional<MatrixView> view_of(const MatrixView& contiguous, const at::Tensor& tensor) {
  if (tensor.is_neg()) return {};
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

namespace {

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

}  // namespace

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
  result.strides.resize(views.size());
  result.inner = inner->empty() ? 1 : inner->front().size;
  result.segments = one_run ? 1 : 2;
  for (size_t i = 0; i < views.size(); ++i) {
    if (!outer->empty()) result.strides[i].outer = outer->front().strides[i];
    if (!inner->empty()) result.strides[i].row = inner->front().strides[i];
    if (!one_run) result.strides[i].segment = runs->front().strides[i];
  }
  return result;
}

}  // namespace erlangen
