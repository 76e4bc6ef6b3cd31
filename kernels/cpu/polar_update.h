// What surrounds the polar iteration in a step, on the CPU. The formulas stand in
// kernels/polar_update.h.
//
// Matrices are taken in blocks of at most 64 rows and 4096 columns, as they lie in memory. Nothing
// here starts threads: blocks are independent, a block's results do not depend on who else is at
// work, and the caller puts them together in their order. A step calls, for all blocks of a matrix,
// polar_update_momentum; then polar_update_cast with the largest key; then, for all rows of x,
// polar_update_normalise with the sum of squares; and after the iteration polar_update_parameter.

#pragma once

#include <cstdint>

#include "../polar_update.h"

namespace erlangen::kernels::cpu {

// A part of one of a tensor's matrices.
struct PolarBlock {
  int64_t matrix;  // of the tensor
  int64_t row, row_end;
  int64_t col, col_end;
};

// How many blocks a matrix has, and which part of it a block is.
int64_t polar_blocks(const PolarUpdateOptions& options);
PolarBlock polar_block(const PolarUpdateOptions& options, int64_t matrix, int64_t block);

// Momentum; the key (norm_step.h) of the largest |z|.
int32_t polar_update_momentum(const PolarTensor& tensor, const PolarUpdateOptions& options,
                              const PolarBlock& block);

// c into x, from the key of the whole matrix; the sum of its squares. Where z is not what the
// momentum stores, it is here that the momentum is written.
double polar_update_cast(const PolarTensor& tensor, const PolarUpdateOptions& options,
                         const PolarBlock& block, int32_t key);

// Divides the rows [begin, end) of the matrix in x by its norm, unless they are to be unscaled.
void polar_update_normalise(const PolarTensor& tensor, const PolarUpdateOptions& options,
                            int64_t matrix, int64_t begin, int64_t end, int32_t key,
                            double squares);

// The parameter, from x after the iteration.
void polar_update_parameter(const PolarTensor& tensor, const PolarUpdateOptions& options,
                            const PolarBlock& block);

}  // namespace erlangen::kernels::cpu
