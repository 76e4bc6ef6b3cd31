#include "polar_iteration.h"
#include "self_check_cases.h"
#include "symmetric_product.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros_like.h>

#include <bit>
#include <cmath>
#include <limits>

namespace erlangen {

namespace {

// A batch as the iteration keeps it on its device, in the kernel's type; NaN between the rows.
at::Tensor placed(const at::Tensor& x, const KernelUse& use) {
  const auto options = at::TensorOptions(use.device).dtype(use.dtypes[0]);
  const at::Tensor result = empty_matrices(x.sizes(), options);
  if (result.stride(0) > 0) {  // all of its memory, gaps included
    at::Tensor all = result.as_strided({result.size(0) * result.stride(0)}, {1});
    all.fill_(std::numeric_limits<double>::quiet_NaN());
  }
  result.copy_(x);
  return result;
}

Expected exactly(const std::string& what, const at::Tensor& value) {
  return {describe(what, value), value, at::zeros_like(value)};
}

// ---- Polar iterations

struct Iteration {
  at::Tensor x;
  PolynomialSteps steps;
};

// Rows of Hadamard matrices, 2^-j of them, so that XXᵀ = I/4, and five columns of zeros; columns in
// another order. All steps give multiples of it by powers of two.
Iteration orthogonal(int64_t batch, int64_t k, int64_t full) {
  const int64_t l = full + 5;
  const double entry = 0.5 / std::sqrt(static_cast<double>(full));
  const at::Tensor x = numbers({batch, k, l}, [&](int64_t i) {
    const uint64_t row = i / l % k, column = i % l * 31 % l;
    if (static_cast<int64_t>(column) >= full) return 0.0;
    return (std::popcount(row & column) + i / l / k) % 2 ? -entry : entry;
  });
  // p(1/2) = 2·1/2, p(1) = 2, p(2) = 2 three times over.
  return {x, {{4, -16, 32}, {3, -2, 1}, {2, -0.5, 0.0625}, {2, -0.5, 0.0625}, {2, -0.5, 0.0625}}};
}

// Three entries a row, 1 or -1: one step of it has small integers in all places.
Iteration sparse(int64_t batch, int64_t k, int64_t l) {
  at::Tensor x = numbers({batch, k, l}, [](int64_t) { return 0.0; });
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t r = 0; r < 3; ++r) {
        x[b][i][(l - 1 + 2 * i + 7 * r + b) % l].fill_((i + r * b) % 3 ? 1 : -1);
      }
    }
  }
  return {x, {{2, 1, -1}}};
}

// Up to 64 and up to 128 rows; so few columns that they stay in shared memory, and more.
std::vector<Iteration> iterations() {
  return {orthogonal(3, 37, 64),   sparse(2, 37, 133),  orthogonal(1, 37, 4096),
          orthogonal(2, 101, 256), sparse(3, 101, 261), sparse(1, 1, 9)};
}

// ---- Symmetric products

struct Product {
  at::Tensor a, b, c;  // b is undefined: a itself
  double beta, alpha;
};

std::vector<Product> products(Kernel kernel) {
  // n and k: for both tiles, and sums so long that they are cut into parts.
  using Sizes = std::pair<int64_t, int64_t>;
  const bool wgmma = kernel == Kernel::symmetric_product_sm90;
  std::vector<Product> result;
  for (const auto& [n, k] : wgmma ? std::vector<Sizes>{{300, 200}, {264, 9000}, {2048, 72}}
                                  : std::vector<Sizes>{{1, 9}, {70, 200}, {70, 9000}, {520, 72}}) {
    // At most 100 entries a row that are not zero, the last one among them: sums stay below 128.
    const int64_t stride = (k + 99) / 100, batch = n * k < 1 << 15 ? 2 : 1;
    const at::Tensor a = numbers({batch, n, k}, [k = k, stride](int64_t i) {
      if ((k - 1 - i % k) % stride != 0) return 0.0;
      return (i * 2654435761 >> 7) % 3 == 0 ? -1.0 : 1.0;
    });
    const at::Tensor c = numbers({batch, n, n}, [n = n](int64_t i) {
      return static_cast<double>((i / n % n + i % n) % 7 - 3);
    });
    result.push_back({a, {}, {}, 0, 1});
    result.push_back({a, a.clone(), c, 2, 0.5});
  }
  return result;
}

SymmetricRoute route_of(const KernelUse& use, const at::Tensor& a) {
  if (use.device.is_cpu()) return symmetric_route(0, {use.dtypes[0], a.size(1), a.size(2)});
  return use.kernel == Kernel::symmetric_product_sm90 ? SymmetricRoute::wgmma
                                                      : SymmetricRoute::mma_sync;
}

at::Tensor unmirrored(int64_t n) {
  return numbers({2, n, n}, [](int64_t i) { return static_cast<double>(i % 251); });
}

constexpr int64_t kMirrored[] = {1, 70, 129};

}  // namespace

std::string describe(const std::string& what, const at::Tensor& tensor) {
  return c10::str(what, " ", tensor.sizes());
}

std::vector<at::Tensor> run_polar_iterations(const KernelUse& use) {
  std::vector<at::Tensor> result;
  for (const auto& [x, steps] : iterations()) {
    for (const bool gram : {false, true}) {
      result.push_back(placed(x, use));
      polar_iteration_by_kernel(result.back(), steps, gram);
    }
  }
  return result;
}

std::vector<Expected> expected_polar_iterations(const KernelUse&) {
  std::vector<Expected> result;
  for (const auto& [x, steps] : iterations()) {
    at::Tensor y = x;
    for (const auto& [a, b, c] : steps) {
      const at::Tensor gram = at::matmul(y, y.mT());
      y = y * a + at::matmul(gram * b + at::matmul(gram, gram) * c, y);
    }
    for (const char* form : {"the standard form's result", "the Gram form's result"}) {
      result.push_back(exactly(form, y));
    }
  }
  return result;
}

std::vector<at::Tensor> run_symmetric_products(const KernelUse& use) {
  std::vector<at::Tensor> result;
  for (const auto& [a, b, c, beta, alpha] : products(use.kernel)) {
    const at::Tensor left = placed(a, use), right = b.defined() ? placed(b, use) : left;
    const at::Tensor nothing = at::empty({a.size(0), a.size(1), a.size(1)}, a.options())
                                   .fill_(std::numeric_limits<double>::quiet_NaN());
    result.push_back(placed(nothing, use));
    symmetric_product_by(route_of(use, a), result.back(), c.defined() ? placed(c, use) : c, left,
                         right, beta, alpha);
  }
  return result;
}

std::vector<Expected> expected_symmetric_products(const KernelUse& use) {
  std::vector<Expected> result;
  at::Tensor gram;
  for (const auto& [a, b, c, beta, alpha] : products(use.kernel)) {
    if (!b.defined()) {  // integers, exact in float32 too; the product of two that follows is alike
      const at::Tensor narrow = a.to(at::kFloat);
      gram = at::matmul(narrow, narrow.mT()).to(at::kDouble);
    }
    at::Tensor value = gram * alpha;
    if (c.defined()) value = value + c * beta;
    result.push_back(exactly(b.defined() ? "a product of two" : "a Gram matrix", value));
  }
  return result;
}

std::vector<at::Tensor> run_mirrors(const KernelUse& use) {
  std::vector<at::Tensor> result;
  for (const int64_t n : kMirrored) {
    result.push_back(placed(unmirrored(n), use));
    mirror_by_kernel(result.back());
  }
  return result;
}

std::vector<Expected> expected_mirrors(const KernelUse&) {
  std::vector<Expected> result;
  for (const int64_t n : kMirrored) {
    const at::Tensor x = unmirrored(n);
    result.push_back(exactly("a mirrored matrix", x.tril() + x.tril(-1).mT()));
  }
  return result;
}

}  // namespace erlangen
