// What the ways from a bucket to the fused kernels share: whether kernels are there, what they
// count, and how the logical matrices of several buffers lie in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <vector>

#include "kernels/row_strides.h"
#include "kernels/types.h"
#include "plan.h"
#include "self_check.h"

namespace erlangen {

kernels::DType kernel_dtype(at::ScalarType dtype);
kernels::DType kernel_dtype(const at::Tensor& tensor);

// A bucket's step by a fused kernel, which is not taken yet: that what a whole step takes is known
// before the first parameter changes.
struct KernelStep {
  Kernel kernel;
  std::vector<Dtypes> dtypes;  // of its members: parameter, momentum, and for polar rules products
  std::function<void()> run;   // of use as long as the bucket and the groups are
};

// Adds the types to those of a step, unless they are there.
void add_dtypes(std::vector<Dtypes>& all, const Dtypes& dtypes);

// Whether this build has kernels for the device; if it should and has not, it says so once.
bool has_kernels(at::Device device);

// Adds to what kernel_count() gives.
void count_kernel_steps(int64_t steps);

// The address of a tensor's element, so many elements after the first.
void* element(const at::Tensor& tensor, int64_t offset);

// Tells autograd of what a kernel writes behind its back: every member's parameter and momentum.
void mark_changed(const Bucket& bucket, const std::vector<StepGroup>& groups);

// The view of the contiguous tensor as one of `tensor`, which has its sizes. Nothing where no
// strides say it, or where what lies in memory is not the value (a lazily negated tensor).
std::optional<MatrixView> view_of(const MatrixView& contiguous, const at::Tensor& tensor);

// How the logical rows lie in all buffers: as the kernels can say it.
struct Rows {
  int64_t inner = 1;  // rows of a block
  int64_t segments = 1;
  std::vector<kernels::RowStrides> strides;  // of each buffer
};

// Columns are one run, or two halves; rows have one stride, or those of a batch have one and those
// of a matrix another. With `keep_matrices` a block of rows is a matrix. `views` has one for each
// buffer, of equal shapes.
std::optional<Rows> rows_of(const std::vector<MatrixView>& views, bool keep_matrices);

}  // namespace erlangen
