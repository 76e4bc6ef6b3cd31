#include "polar_iteration.h"

#include "device.h"
#include "parallel_parts.h"
#include "self_check.h"
#include "symmetric_product.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <utility>

#ifdef ERLANGEN_CUDA
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/cuda/polar_iteration.cuh"
#endif

namespace erlangen {

namespace {

std::atomic<int64_t> batches_by_kernel = 0;

// On the CPU matrices are taken in groups of about so many elements: few enough to stay in a core's
// cache through the iteration, enough to be worth the calls.
constexpr int64_t kGroupElements = 1 << 16;

bool is_half(at::ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

// With which steps the Gram form begins anew from X, its k×k products rounding as `rounding` does.
// Errors of R act on σ², and grow by a² with every step.
std::vector<bool> restarts(const PolynomialSteps& steps, at::ScalarType rounding) {
  std::vector<bool> result;
  if (is_half(rounding)) {
    // float16 needs it every second step, and after the first one, whose coefficients are the
    // largest and cancel the most; bfloat16 with every step: else R strays so far, or gets so
    // negative, that the next polynomials blow it up.
    for (size_t i = 0; i < steps.size(); ++i) {
      result.push_back(rounding == at::kBFloat16 || i == 0 || i % 2 == 1);
    }
    return result;
  }
  // What rounding makes of a σ² that is zero must stay small beside one: with 1/16, every set at
  // its own length but deepseek_v4 goes through in float32 without a restart, and σ down to 1e-3
  // of the largest ends within a few hundredths of what the standard form makes of it.
  const double most = (rounding == at::kDouble ? 0x1p52 : 0x1p23) / 16;
  double growth = most;
  for (const auto& [a, b, c] : steps) {
    result.push_back(growth >= most);
    growth = (result.back() ? 1.0 : growth) * a * a;
  }
  return result;
}

// Memory for the iteration of a batch of k×l matrices, reused by all steps and all groups.
struct Scratch {
  at::Tensor wide;                   // [B, k, l]
  std::array<at::Tensor, 5> square;  // [B, k, k]
  at::Tensor factor;                 // [B, k, k] in x's type, where that of the others differs

  Scratch(const at::Tensor& x, int64_t batch, bool gram) {
    const int64_t k = x.size(1), l = x.size(2);
    wide = empty_matrices({batch, k, l}, x.options());
    const auto type = gram ? gram_dtype(x.scalar_type(), x.device(), k, l) : x.scalar_type();
    for (size_t i = 0; i < (gram ? 5 : 2); ++i) {
      square[i] = empty_matrices({batch, k, k}, x.options().dtype(type));
    }
    if (type != x.scalar_type()) factor = empty_matrices({batch, k, k}, x.options());
  }

  // The same memory for the first matrices of the batch.
  Scratch first(int64_t batch) const {
    Scratch result = *this;
    const auto cut = [&](at::Tensor& t) {
      if (t.defined()) t = t.narrow(0, 0, batch);
    };
    cut(result.wide);
    cut(result.factor);
    for (at::Tensor& t : result.square) cut(t);
    return result;
  }
};

// X ← aX + (bA + cA²)X with A = XXᵀ. The result is in x or in the scratch memory, and returned.
at::Tensor standard_form(at::Tensor x, const PolynomialSteps& steps, Scratch s) {
  const at::Tensor &gram = s.square[0], &polynomial = s.square[1];
  for (const auto& [a, b, c] : steps) {
    symmetric_product_out(gram, {}, x, x, /*beta=*/0.0, /*alpha=*/1.0);
    symmetric_product_out(polynomial, gram, gram, gram, /*beta=*/b, /*alpha=*/c);
    product_out(s.wide, x, polynomial, x, /*beta=*/a, /*alpha=*/1.0);
    std::swap(x, s.wide);
  }
  return x;
}

// The same polynomials on the k×k Gram matrix alone. With R = XXᵀ, Q = I and, in each step,
// Z = bR + cR²: Q ← QZ + aQ and R ← (Z + aI)R(Z + aI), as RZ + aR and then Z·RZ + a·RZ; at the end
// X ← QX. All of them are polynomials in R, so symmetric and commuting. `a` stays out of the
// products: forming Z + aI in half precision would round Z away.
at::Tensor gram_form(at::Tensor x, const PolynomialSteps& steps, Scratch s) {
  auto& [r, z, rz, q, q_next] = s.square;
  const std::vector<bool> begins = restarts(
      steps, r.scalar_type() == at::kFloat ? float32_products(r.device()) : r.scalar_type());
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto& [a, b, c] = steps[i];
    const bool first = begins[i];
    const bool last = i + 1 == steps.size() || begins[i + 1];
    if (first) symmetric_product_out(r, {}, x, x, /*beta=*/0.0, /*alpha=*/1.0);
    symmetric_product_out(z, r, r, r, /*beta=*/b, /*alpha=*/c);
    if (first) {
      q.copy_(z);
      q.diagonal(0, -2, -1).add_(a);
    } else {
      symmetric_product_out(q_next, q, q, z, /*beta=*/a, /*alpha=*/1.0);
      std::swap(q, q_next);
    }
    if (!last) {
      symmetric_product_out(rz, r, r, z, /*beta=*/a, /*alpha=*/1.0);
      symmetric_product_out(r, rz, z, rz, /*beta=*/a, /*alpha=*/1.0);
      continue;
    }
    const at::Tensor& factor = s.factor.defined() ? s.factor.copy_(q) : q;
    product_out(s.wide, {}, factor, x, /*beta=*/0.0, /*alpha=*/1.0);
    if (s.factor.defined()) {
      // Q is as large as what it multiplies the smallest singular values by: rounded to x's type
      // once, it would be off by as much for the largest. So it comes in two parts.
      s.factor.copy_(q.sub_(factor));
      product_out(s.wide, s.wide, s.factor, x, /*beta=*/1.0, /*alpha=*/1.0);
    }
    std::swap(x, s.wide);
  }
  return x;
}

void iterate(const at::Tensor& x, const PolynomialSteps& steps, bool gram, const Scratch& scratch) {
  const at::Tensor result = gram ? gram_form(x, steps, scratch) : standard_form(x, steps, scratch);
  if (!result.is_same(x)) x.copy_(result);
}

#ifdef ERLANGEN_CUDA
// As the kernel takes it.
kernels::cuda::PolarIteration arguments(const at::Tensor& x, const PolynomialSteps& steps,
                                        bool gram) {
  kernels::cuda::PolarIteration p = {};
  p.x = x.data_ptr();
  p.batch = x.size(0), p.k = x.size(1), p.l = x.size(2);
  p.row = x.stride(1), p.matrix = x.stride(0);
  p.dtype = x.scalar_type() == at::kHalf ? kernels::DType::float16 : kernels::DType::bfloat16;
  p.steps = static_cast<int>(steps.size());
  p.period = gram && x.scalar_type() == at::kHalf ? 2 : 1;
  for (size_t i = 0; i < std::min<size_t>(steps.size(), kernels::cuda::kPolarIterationMaxSteps);
       ++i) {
    p.a[i] = static_cast<float>(steps[i][0]);
    p.b[i] = static_cast<float>(steps[i][1]);
    p.c[i] = static_cast<float>(steps[i][2]);
  }
  return p;
}
#endif

// Whether all steps go in one launch: where that is the way for these matrices, and the kernel may
// be used.
bool in_proven_launch(at::Device device, at::ScalarType dtype, int64_t k, int64_t l, size_t steps,
                      bool aligned) {
  return polar_in_one_launch(cuda_capability(device), dtype, k, l, steps, aligned) &&
         proven({Kernel::polar_iteration, device, {dtype}});
}

}  // namespace

bool polar_in_one_launch(int capability, at::ScalarType dtype, int64_t k, int64_t l, size_t steps,
                         bool aligned) {
  if (capability < 80 || !is_half(dtype) || !aligned || k > 128 || steps > 64) return false;
  // Product by product, five steps are 21 launches, about 0.1 ms however few the matrices. In one
  // launch a matrix has one multiprocessor to itself, which takes 6 k² l + 11 k³ multiplications (k
  // padded to 64 or 128) at some 1.5e12 a second. The limits are where a lone matrix takes about as
  // long either way. The rest of a wave costs nothing more, and several waves fill the device as
  // the products do; the batch must not choose, or it would change a matrix's bits. Estimates, not
  // yet measured.
  return l <= (k <= 64 ? 8192 : 2048);
}

int64_t polar_kernel_count() { return batches_by_kernel; }

void prove_polar_iteration(at::Device device, at::ScalarType dtype, int64_t k, int64_t l,
                           size_t steps, bool gram) {
  if (in_proven_launch(device, dtype, k, l, steps, /*aligned=*/true)) return;
  const auto type = gram ? gram_dtype(dtype, device, k, l) : dtype;
  const bool same = type == dtype;  // else the factors are narrower than XXᵀ, which ATen multiplies
  proven_symmetric_route(device, {type, k, l, same, same && kHasWgmma});
  proven_symmetric_route(device, {type, k, k, true, kHasWgmma});
}

void polar_iteration_by_kernel(const at::Tensor& x, const PolynomialSteps& steps, bool gram) {
#ifdef ERLANGEN_CUDA
  if (x.is_cuda()) {
    C10_CUDA_CHECK(kernels::cuda::polar_iteration(arguments(x, steps, gram),
                                                  c10::cuda::getCurrentCUDAStream(x.get_device())));
    return;
  }
#endif
  polar_iteration(x, steps, gram);
}

at::ScalarType gram_dtype(at::ScalarType dtype, at::Device device, int64_t k, int64_t l) {
  // On a GPU float32 multiplies at about a twelfth of half precision's rate. Without restarts the
  // Gram form takes 2.5 lk² multiplications (half a product, and one in two parts) and, in five
  // steps, 8.5 k³; with float16's restarts 4.5 lk², and no k³ to speak of. What is saved of the
  // first is more than float32 costs from here on.
  const bool pays = dtype == at::kHalf && l >= 48 * k;
  return pays && float32_products(device) == at::kFloat ? at::kFloat : dtype;
}

bool gram_form_is_cheaper(int64_t k, int64_t l) {
  // A step of the standard form is two symmetric products (lk² and k³ multiplications, half of them
  // where only a triangle is computed) and one that is not, lk². In the Gram form a segment between
  // restarts takes one symmetric and one other product of lk², and symmetric ones of k³: five in
  // two steps, seventeen in five. Both are equal at l = k with triangles, at l = 1.5 k without,
  // whether the segment has two steps (float16) or five (float32). Between the two the standard
  // form has fewer and larger products.
  return 2 * l >= 3 * k;
}

at::Tensor empty_matrices(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const auto padded = [&](int64_t size, int64_t bytes) {
    const int64_t unit =
        std::max<int64_t>(1, bytes / static_cast<int64_t>(options.dtype().itemsize()));
    return (size + unit - 1) / unit * unit;
  };
  const int64_t batch = sizes[0], rows = sizes[1], cols = sizes[2];
  if (!options.device().is_cpu()) {
    return at::empty({batch, rows, padded(cols, 16)}, options).narrow(2, 0, cols);
  }
  // ATen's CPU products want rows without gaps, and round by where in a cache line a matrix begins.
  return at::empty({batch, padded(rows * cols, 64)}, options)
      .narrow(1, 0, rows * cols)
      .view({batch, rows, cols});
}

void polar_iteration(const at::Tensor& x, const PolynomialSteps& steps, bool gram) {
  const int64_t batch = x.size(0), k = x.size(1), l = x.size(2);
  if (x.numel() == 0 || steps.empty()) return;
#ifdef ERLANGEN_CUDA
  if (x.is_cuda()) {
    const c10::DeviceGuard guard(x.device());
    const bool aligned = kernels::cuda::polar_iteration_supports(arguments(x, steps, gram));
    if (in_proven_launch(x.device(), x.scalar_type(), k, l, steps.size(), aligned)) {
      polar_iteration_by_kernel(x, steps, gram);
      ++batches_by_kernel;
    } else {
      iterate(x, steps, gram, Scratch(x, batch, gram));
    }
    return;
  }
#endif
  const int64_t group = std::clamp<int64_t>(kGroupElements / (k * std::max(k, l)), 1, batch);
  const int64_t groups = (batch + group - 1) / group;
  // Whole iterations side by side need no barriers; where there are fewer of them than threads,
  // each product is cut up instead.
  if (!x.is_cpu() || groups < at::get_num_threads()) {
    iterate(x, steps, gram, Scratch(x, batch, gram));
    return;
  }
  parallel_parts(groups, [&](int64_t begin, int64_t end) {
    const Scratch scratch(x, group, gram);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t size = std::min(group, batch - i * group);
      iterate(x.narrow(0, i * group, size), steps, gram, scratch.first(size));
    }
  });
}

}  // namespace erlangen
