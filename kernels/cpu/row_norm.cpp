// The row-norm step on the CPU, one row at a time in three passes. The formula stands in
// kernels/row_norm.h.
//
//   1. momentum and direction: reads g and m, writes m; the direction goes to a scratch row
//   2. norm: the scratch row only
//   3. parameter: reads the scratch row, reads and writes p
//
// The scratch row stays in the nearest cache, so that memory sees each of g, m and p once: 20
// bytes an element in float32. Pass 1 goes strip by strip and asks for the parameter's strip, which
// pass 3 will want, and for the gradient and momentum of strips to come: hardware prefetchers start
// anew at every page, and a row is often just one.
//
// No product is contracted with a sum, so that every instruction set gives the same bits.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off", "no-trapping-math")
#elif defined(__clang__)
#pragma clang fp contract(off)
#endif

#include "row_norm.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "row_norm_rows.h"

namespace erlangen::kernels::cpu {
namespace {

template <typename Param, typename Momentum, typename Compute>
ERLANGEN_INLINE void step_rows(const RowNormTensor& tensor, const RowNormOptions& options,
                               int64_t begin, int64_t end) {
  if (row_norm::overflowed(options)) return;
  const int64_t run = options.cols / options.segments;
  const auto s = row_norm::scalars<Compute>(options);
  const auto noise = row_norm::rounding_noise(tensor, options);
  const Compute lost = static_cast<Compute>(row_norm::lost(tensor));
  const double step_size = row_norm::step_size(tensor);
  const std::unique_ptr<Compute[]> scratch(new Compute[options.cols]);
  for (int64_t row = begin; row < end; ++row) {
    const row_norm::RowPlace place = row_norm::row_place(tensor, row);
    Param* row_param =
        static_cast<Param*>(tensor.param) + row_norm::row_start(tensor.param_strides, place);
    const Param* row_grad =
        static_cast<const Param*>(tensor.grad) + row_norm::row_start(tensor.grad_strides, place);
    Momentum* row_momentum = static_cast<Momentum*>(tensor.momentum) +
                             row_norm::row_start(tensor.momentum_strides, place);

    RowFacts facts;
    for (int64_t segment = 0; segment < options.segments; ++segment) {
      Param* param = row_param + segment * tensor.param_strides.segment;
      const Param* grad = row_grad + segment * tensor.grad_strides.segment;
      Momentum* momentum = row_momentum + segment * tensor.momentum_strides.segment;
      Compute* direction = scratch.get() + segment * run;
      for (int64_t c = 0; c < run; c += kStrip) {
        const int64_t count = std::min(kStrip, run - c);
        prefetch(param + c, 0);
        prefetch(grad + c, kBytesAhead);
        prefetch(momentum + c, kBytesAhead);
        if (options.nesterov) {
          take_gradient<true, true>(grad + c, momentum + c, direction + c, count, s, &facts);
        } else {
          take_gradient<false, true>(grad + c, momentum + c, direction + c, count, s, &facts);
        }
      }
    }
    if (options.gradient_support && facts.gradient_bits == 0) continue;

    RowUpdate<Compute> u;
    row_norm::prescale(facts.key, &u.scale);
    const double squares = sum_of_squares(scratch.get(), options.cols, u.scale);
    // Asked of the sum, not of the maximum: a row of NaN is no row of zeros.
    u.length = static_cast<Compute>(squares == 0 ? 0 : step_size / std::sqrt(squares));
    u.lost = lost;
    const int64_t element =
        tensor.element_offset + row_norm::row_start(tensor.element_strides, place);
    for (int64_t segment = 0; segment < options.segments; ++segment) {
      update_run(row_param + segment * tensor.param_strides.segment, scratch.get() + segment * run,
                 run, u, options, noise, element + segment * tensor.element_strides.segment);
    }
  }
}

// All types in one function, because the clones are per function and everything inlines into it.
ERLANGEN_CPU_CLONES void step_rows_of_any_type(const RowNormTensor& tensor,
                                               const RowNormOptions& options, int64_t begin,
                                               int64_t end) {
  const bool low = options.momentum_dtype == DType::bfloat16;
  switch (options.dtype) {
    case DType::float64: return step_rows<double, double, double>(tensor, options, begin, end);
    case DType::float32:
      return low ? step_rows<float, BFloat16, float>(tensor, options, begin, end)
                 : step_rows<float, float, float>(tensor, options, begin, end);
    case DType::bfloat16:
      return low ? step_rows<BFloat16, BFloat16, float>(tensor, options, begin, end)
                 : step_rows<BFloat16, float, float>(tensor, options, begin, end);
    case DType::float16:
      return low ? step_rows<Float16, BFloat16, float>(tensor, options, begin, end)
                 : step_rows<Float16, float, float>(tensor, options, begin, end);
  }
}

}  // namespace

void row_norm_step(const RowNormTensor& tensor, const RowNormOptions& options, int64_t begin,
                   int64_t end) {
  step_rows_of_any_type(tensor, options, begin, end);
}

}  // namespace erlangen::kernels::cpu
