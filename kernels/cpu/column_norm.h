// The column-norm step on the CPU. The formula stands in kernels/column_norm.h.

#pragma once

#include <cstdint>

#include "../column_norm.h"

namespace erlangen::kernels::cpu {

// Rows whose sums of squares are kept apart. Fixed, so that no result depends on how the work is
// divided; it must begin and end at multiples of it, or at the last row.
constexpr int64_t kColumnNormChunkRows = 512;

// A part of one matrix: rows and columns as they are stored.
struct ColumnNormBlock {
  int64_t matrix;
  int64_t row_begin, row_end;
  int64_t col_begin, col_end;
};

// What `scratch` below must hold for one tensor, and the alignment is that of double.
int64_t column_norm_scratch_bytes(const ColumnNormTensor& tensor, const ColumnNormOptions& options);

// The step of a tensor is these three, each on all of its blocks before the next begins on the same
// columns (with pairs: on the columns of the same units). They start no threads, and blocks are
// independent. The types must be ones that column_norm_supports. A unit's result depends neither on
// the blocks nor on the CPU's vector width.

// Sums of squares; the new momentum, where that is the direction.
void column_norm_sum(const ColumnNormTensor& tensor, const ColumnNormOptions& options,
                     const ColumnNormBlock& block, void* scratch);

// From the sums of all rows to the lengths of the updates. The block's rows are not looked at.
void column_norm_lengths(const ColumnNormTensor& tensor, const ColumnNormOptions& options,
                         const ColumnNormBlock& block, void* scratch);

// The parameter, and the momentum where it is not yet written. The block's rows may be any.
void column_norm_update(const ColumnNormTensor& tensor, const ColumnNormOptions& options,
                        const ColumnNormBlock& block, const void* scratch);

}  // namespace erlangen::kernels::cpu
