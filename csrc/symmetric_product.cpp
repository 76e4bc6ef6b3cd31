#include "symmetric_product.h"

#include "device.h"
#include "kernels/cpu/mirror_lower.h"
#include "parallel_parts.h"
#include "self_check.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>

#ifdef ERLANGEN_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/cuda/mirror_lower.cuh"
#include "kernels/cuda/symmetric_product.cuh"
#include "kernels/cuda/symmetric_product_tiles.h"
#ifdef ERLANGEN_SM90
#include "kernels/cuda/symmetric_product_sm90.cuh"
#endif
#endif

namespace erlangen {

namespace {

std::atomic<int64_t> products_by_kernel = 0;

// Rows of a strip on the CPU. Its shape is fixed, so that a result depends neither on the number
// of threads nor on the batch. Libraries pack the other factor anew for each strip: with 128 rows
// products of 1024×4096 ran at two thirds of their speed, with 256 at nine tenths.
constexpr int64_t kStripRows = 256;
// Of symmetric products in float32 and float64: as fast from 768 rows on, faster below, and of 256
// rows a long strip would be the whole product.
constexpr int64_t kShortStripRows = 128;
// From here on each matrix is multiplied alone on the CPU, strip by strip. Below, matrices are
// multiplied in batches: a call of its own for each would cost more than the product.
constexpr int64_t kSmallestCutOnCpu = 256;
// Strips on CUDA: 10/16 of a full product in four launches.
constexpr int64_t kStripsOnCuda = 4;

// What our kernels may have for partial sums on CUDA: of thousands of tiles, so that slices of a
// batch fill the device too.
constexpr int64_t kMostWorkspaceBytes = int64_t{256} << 20;
#ifdef ERLANGEN_CUDA
static_assert(kernels::cuda::kMostPartialBytes <= kMostWorkspaceBytes / 4);  // those of a matrix
#endif

bool is_half(at::ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

// out ← beta·c + alpha·a·b, in 2-D or 3-D; a and b may be narrower than out in 3-D on CUDA.
void aten_product_out(at::Tensor out, const at::Tensor& c, const at::Tensor& a, const at::Tensor& b,
                      double beta, double alpha) {
  const at::Tensor& self = beta == 0.0 ? out : c;
  if (out.scalar_type() != a.scalar_type()) {
    at::baddbmm_out(out, self, a, b, out.scalar_type(), beta, alpha);
  } else if (out.dim() == 2) {
    at::addmm_out(out, self, a, b, beta, alpha);
  } else {
    at::baddbmm_out(out, self, a, b, beta, alpha);
  }
}

at::Tensor part(const at::Tensor& t, int64_t dim, int64_t begin, int64_t end) {
  return t.defined() ? t.narrow(dim, begin, end - begin) : t;
}

// ---- CPU

// Of the strips of one matrix, the one that is taken at place `i`: short and long ones in turn, so
// that neighbours, which one thread takes, are about as long as others.
int64_t strip_at(int64_t i, int64_t strips) { return i % 2 == 0 ? i / 2 : strips - 1 - i / 2; }

// f(matrix, first row, end row) for each strip of each matrix.
template <typename F>
void parallel_strips(int64_t batch, int64_t rows, int64_t strip_rows, F&& f) {
  const int64_t strips = (rows + strip_rows - 1) / strip_rows;
  parallel_parts(batch * strips, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = strip_at(i % strips, strips) * strip_rows;
      f(i / strips, first, std::min(first + strip_rows, rows));
    }
  });
}

void mirror_on_cpu(const at::Tensor& out, int64_t matrix, int64_t begin, int64_t end) {
  auto* data = static_cast<char*>(out.data_ptr()) + matrix * out.stride(0) * out.element_size();
  kernels::cpu::mirror_lower(data, out.stride(1), static_cast<int>(out.element_size()), begin, end);
}

// ATen multiplies a batch of vectors in another way than one of them.
bool has_vectors(const at::Tensor& out, const at::Tensor& a) {
  return out.size(1) == 1 || out.size(2) == 1 || a.size(2) == 1;
}

void symmetric_on_cpu(const at::Tensor& out, const at::Tensor& c, const at::Tensor& a,
                      const at::Tensor& b, double beta, double alpha, SymmetricRoute route) {
  const int64_t batch = out.size(0), n = out.size(1);
  if (route == SymmetricRoute::plain && !has_vectors(out, a)) {
    parallel_parts(batch, [&](int64_t begin, int64_t end) {
      aten_product_out(part(out, 0, begin, end), part(c, 0, begin, end), part(a, 0, begin, end),
                       part(b, 0, begin, end).mT(), beta, alpha);
      for (int64_t i = begin; i < end; ++i) mirror_on_cpu(out, i, 0, n);
    });
    return;
  }
  const int64_t strip_rows = is_half(out.scalar_type()) ? kStripRows : kShortStripRows;
  parallel_strips(batch, n, strip_rows, [&](int64_t matrix, int64_t first, int64_t end) {
    const auto corner = [&](const at::Tensor& t) {
      return t.defined() ? part(part(t[matrix], 0, first, end), 1, 0, end) : t;
    };
    aten_product_out(corner(out), corner(c), part(a[matrix], 0, first, end),
                     part(b[matrix], 0, 0, end).mT(), beta, alpha);
    mirror_on_cpu(out, matrix, first, end);
  });
}

void product_on_cpu(const at::Tensor& out, const at::Tensor& c, const at::Tensor& a,
                    const at::Tensor& b, double beta, double alpha) {
  const int64_t batch = out.size(0), rows = out.size(1);
  if (rows < kSmallestCutOnCpu && !has_vectors(out, a)) {
    parallel_parts(batch, [&](int64_t begin, int64_t end) {
      aten_product_out(part(out, 0, begin, end), part(c, 0, begin, end), part(a, 0, begin, end),
                       part(b, 0, begin, end), beta, alpha);
    });
    return;
  }
  parallel_strips(batch, rows, kStripRows, [&](int64_t matrix, int64_t first, int64_t end) {
    const auto strip = [&](const at::Tensor& t) {
      return t.defined() ? part(t[matrix], 0, first, end) : t;
    };
    aten_product_out(strip(out), strip(c), strip(a), b[matrix], beta, alpha);
  });
}

// ---- CUDA and other devices

#ifdef ERLANGEN_CUDA
kernels::cuda::SymmetricProduct arguments(const at::Tensor& out, const at::Tensor& c,
                                          const at::Tensor& a, const at::Tensor& b, double beta,
                                          double alpha) {
  const bool has_c = beta != 0.0;
  return {
      .a = a.const_data_ptr(),
      .b = b.const_data_ptr(),
      .c = has_c ? c.const_data_ptr() : nullptr,
      .d = out.data_ptr(),
      .batch = out.size(0),
      .n = out.size(1),
      .k = a.size(2),
      .a_row = a.stride(1),
      .b_row = b.stride(1),
      .c_row = has_c ? c.stride(1) : 0,
      .d_row = out.stride(1),
      .a_batch = a.stride(0),
      .b_batch = b.stride(0),
      .c_batch = has_c ? c.stride(0) : 0,
      .d_batch = out.stride(0),
      .alpha = static_cast<float>(alpha),
      .beta = static_cast<float>(beta),
      .dtype = out.scalar_type() == at::kHalf ? kernels::DType::float16 : kernels::DType::bfloat16};
}

// By one of our kernels. `workspace` says how many bytes it needs, in proportion to the batch.
void by_kernel(const kernels::cuda::SymmetricProduct& product, const at::Tensor& out,
               decltype(kernels::cuda::symmetric_product)* kernel,
               decltype(kernels::cuda::symmetric_product_workspace)* workspace) {
  const auto bytes = static_cast<int64_t>(workspace(product)) / product.batch;
  const int64_t slice = symmetric_slice(product.batch, bytes);
  const at::Tensor memory = at::empty({slice * bytes}, out.options().dtype(at::kByte));
  for (int64_t first = 0; first < product.batch; first += slice) {
    C10_CUDA_CHECK(
        kernel(kernels::cuda::some_of(product, first, std::min(slice, product.batch - first)),
               memory.data_ptr(), c10::cuda::getCurrentCUDAStream(out.get_device())));
  }
}

SymmetricOperands operands_of(const kernels::cuda::SymmetricProduct& product, at::ScalarType dtype,
                              bool widens) {
  SymmetricOperands operands = {dtype, product.n, product.k};
  operands.mma_sync = !widens && kernels::cuda::symmetric_product_supports(product);
#ifdef ERLANGEN_SM90
  operands.wgmma = !widens && kernels::cuda::symmetric_product_sm90_supports(product);
#endif
  return operands;
}
#endif

void mirror(const at::Tensor& out) {
  if (out.is_cuda() && proven({Kernel::mirror_lower, out.device(), {out.scalar_type()}})) {
    return mirror_by_kernel(out);
  }
  const at::Tensor index = at::arange(out.size(1), out.options().dtype(at::kLong));
  out.copy_(at::where(index.unsqueeze(1).ge(index), out, out.mT()));
}

void symmetric_by_strips(const at::Tensor& out, const at::Tensor& c, const at::Tensor& a,
                         const at::Tensor& b, double beta, double alpha) {
  const int64_t n = out.size(1);
  // Rounded up to what keeps the rows of each strip at multiples of 16 bytes.
  const int64_t rows = ((n + kStripsOnCuda - 1) / kStripsOnCuda + 63) / 64 * 64;
  for (int64_t first = 0; first < n; first += rows) {
    const int64_t end = std::min(first + rows, n);
    const auto corner = [&](const at::Tensor& t) {
      return part(part(t, 1, first, end), 2, 0, end);
    };
    aten_product_out(corner(out), corner(c), part(a, 1, first, end), part(b, 1, 0, end).mT(), beta,
                     alpha);
  }
}

// Whether strips on CUDA are worth their launches, by counting waves of cuBLAS's tiles for one
// matrix: of 128×64 in float32, 128×128 in half precision, on 108 and 132 SMs. Their speedup is
//
//   n                     1024      1536      2048     2304      2560      3072      4096
//   k = n     float32     .5 .25    .75 .75   1 1      1 .8      1.3 1.2   1.4 1.1   1.4 1.6
//             half        .25 .25   .5 .5     .75 .5   .75 .75   1 1       1.2 1     1.25 1.3
//   k = 8n    float32     1.4 1.4   1.6 1.5
//             half        1.1 1.0   1.5 1.4
//
// where sums over 8n are cut into up to 8 parts, as cuBLAS does, and those over n are not.
bool strips_pay(int64_t n, int64_t k) { return n >= (k >= 8 * n ? 1024 : 2560); }

}  // namespace

int64_t symmetric_kernel_count() { return products_by_kernel; }

int64_t symmetric_slice(int64_t batch, int64_t bytes) {
  return bytes == 0 ? batch : std::clamp<int64_t>(kMostWorkspaceBytes / bytes, 1, batch);
}

SymmetricRoute symmetric_route(int capability, const SymmetricOperands& operands) {
  using enum SymmetricRoute;
  const auto& [dtype, n, k, takes_mma_sync, takes_wgmma] = operands;
  if (capability == 0) {
    // Measured with one thread against the whole product, k = n: float32 1.2 at 256 (bfloat16 0.9),
    // 1.5 at 512 (1.0 to 1.2), 1.7 at 1024 (1.4 to 1.5). ATen's float16 products are too slow to
    // matter.
    if (dtype == at::kHalf) return plain;
    return n >= (dtype == at::kBFloat16 ? 2 * kSmallestCutOnCpu : kSmallestCutOnCpu) ? strips
                                                                                     : plain;
  }
  // Float32 and float64 have no tensor-core kernel of ours.
  const SymmetricRoute cublas = strips_pay(n, k) ? strips : plain;
  if (!is_half(dtype) || !takes_mma_sync || capability < 80) return cublas;
  // Hopper: mma.sync reaches about 60 % of its tensor cores, wgmma all. A tile of it is 128 rows;
  // from two of them on it is never slower than a full product in the same tiles.
  if (capability / 10 == 9) return takes_wgmma && n >= 256 ? wgmma : mma_sync;
  // Data-centre Blackwell: only tcgen05 products, cuBLAS's, are fast; a small one waits for its
  // launches anyway, and the kernel is one where ATen and the mirror are two.
  if (capability / 10 == 10) return n >= 1024 ? cublas : mma_sync;
  // Ampere, Ada, consumer Blackwell: mma.sync is what cuBLAS runs too.
  return mma_sync;
}

SymmetricRoute proven_symmetric_route(at::Device device, SymmetricOperands operands) {
  using enum SymmetricRoute;
  const int capability = cuda_capability(device);
  operands.wgmma = operands.wgmma && takes_wgmma();
  const auto passes = [&](Kernel kernel) { return proven({kernel, device, {operands.dtype}}); };
  SymmetricRoute route = symmetric_route(capability, operands);
  if (route == wgmma && !passes(Kernel::symmetric_product_sm90)) {
    operands.wgmma = false;
    route = symmetric_route(capability, operands);
  }
  if (route == mma_sync && !passes(Kernel::symmetric_product)) {
    operands.mma_sync = false;
    route = symmetric_route(capability, operands);
  }
  if (device.is_cuda() && (route == plain || route == strips)) passes(Kernel::mirror_lower);
  return route;
}

void symmetric_product_by(SymmetricRoute route, const at::Tensor& out, const at::Tensor& c,
                          const at::Tensor& a, const at::Tensor& b, double beta, double alpha) {
  if (out.is_cpu()) return symmetric_on_cpu(out, c, a, b, beta, alpha, route);
#ifdef ERLANGEN_CUDA
  if (route == SymmetricRoute::mma_sync) {
    return by_kernel(arguments(out, c, a, b, beta, alpha), out, kernels::cuda::symmetric_product,
                     kernels::cuda::symmetric_product_workspace);
  }
#ifdef ERLANGEN_SM90
  if (route == SymmetricRoute::wgmma) {
    return by_kernel(arguments(out, c, a, b, beta, alpha), out,
                     kernels::cuda::symmetric_product_sm90,
                     kernels::cuda::symmetric_product_sm90_workspace);
  }
#endif
#endif
  if (route == SymmetricRoute::strips) {
    symmetric_by_strips(out, c, a, b, beta, alpha);
  } else {
    aten_product_out(out, c, a, b.mT(), beta, alpha);
  }
  mirror(out);
}

void mirror_by_kernel(const at::Tensor& out) {
  if (out.is_cpu()) {
    for (int64_t i = 0; i < out.size(0); ++i) mirror_on_cpu(out, i, 0, out.size(1));
  }
#ifdef ERLANGEN_CUDA
  if (out.is_cuda()) {
    C10_CUDA_CHECK(kernels::cuda::mirror_lower(
        out.data_ptr(), out.size(0), out.size(1), out.stride(1), out.stride(0),
        static_cast<int>(out.element_size()), c10::cuda::getCurrentCUDAStream(out.get_device())));
  }
#endif
}

void symmetric_product_out(const at::Tensor& out, const at::Tensor& c, const at::Tensor& a,
                           const at::Tensor& b, double beta, double alpha) {
  if (out.numel() == 0) return;
  if (alpha == 0.0) {  // cubic polynomials; ATen's bfloat16 products on the CPU forget beta then
    out.copy_(c).mul_(beta);
    return;
  }
  const bool widens = out.scalar_type() != a.scalar_type();
  if (widens && !out.is_cuda()) {
    const at::Tensor wide = a.to(out.scalar_type());
    return symmetric_product_out(out, c, wide, b.is_same(a) ? wide : b.to(out.scalar_type()), beta,
                                 alpha);
  }
  SymmetricRoute route = SymmetricRoute::plain;
  if (out.is_cpu()) route = symmetric_route(0, {out.scalar_type(), out.size(1), a.size(2)});
#ifdef ERLANGEN_CUDA
  if (out.is_cuda()) {
    const auto operands =
        operands_of(arguments(out, c, a, b, beta, alpha), out.scalar_type(), widens);
    route = proven_symmetric_route(out.device(), operands);
    if (route == SymmetricRoute::mma_sync || route == SymmetricRoute::wgmma) ++products_by_kernel;
  }
#endif
  symmetric_product_by(route, out, c, a, b, beta, alpha);
}

void product_out(const at::Tensor& out, const at::Tensor& c, const at::Tensor& a,
                 const at::Tensor& b, double beta, double alpha) {
  if (out.numel() == 0) return;
  if (out.is_cpu()) return product_on_cpu(out, c, a, b, beta, alpha);
  aten_product_out(out, c, a, b, beta, alpha);
}

}  // namespace erlangen
