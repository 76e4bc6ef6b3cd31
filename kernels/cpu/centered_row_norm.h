// The centered row-norm step on the CPU. The formula stands in kernels/centered_row_norm.h.

#pragma once

#include <cstdint>

#include "../centered_row_norm.h"

namespace erlangen::kernels::cpu {

// The passes over one tensor, to be called one after the other, each over all of its chunks or
// column blocks, in any ranges and by any threads:
//
//   sums, mean, units, mean of units, update
//
// `scratch` has centered_scratch_bytes. None starts threads; results do not depend on the ranges,
// nor on the CPU's vector width. Chunks and column blocks of all matrices are numbered through.
int64_t centered_chunks(const RowNormTensor& tensor);
int64_t centered_column_blocks(const RowNormTensor& tensor, const RowNormOptions& options);

void centered_row_norm_sums(const RowNormTensor& tensor, const RowNormOptions& options,
                            void* scratch, int64_t begin, int64_t end);
void centered_row_norm_mean(const RowNormTensor& tensor, const RowNormOptions& options,
                            void* scratch, bool of_units, int64_t begin, int64_t end);
void centered_row_norm_units(const RowNormTensor& tensor, const RowNormOptions& options,
                             void* scratch, int64_t begin, int64_t end);
void centered_row_norm_update(const RowNormTensor& tensor, const RowNormOptions& options,
                              void* scratch, int64_t begin, int64_t end);

}  // namespace erlangen::kernels::cpu
