// The row-norm step on the CPU. The formula stands in kernels/row_norm.h.

#pragma once

#include <cstdint>

#include "../row_norm.h"

namespace erlangen::kernels::cpu {

// Steps the rows [begin, end) of one parameter; the types must be ones that row_norm_supports. It
// starts no threads: rows are independent, and a row's result does not depend on the range it is
// part of, nor on the CPU's vector width.
void row_norm_step(const RowNormTensor& tensor, const RowNormOptions& options, int64_t begin,
                   int64_t end);

}  // namespace erlangen::kernels::cpu
