// What is left of a symmetric product when the wgmma kernel is through.

#include "symmetric_product_sm90_finish.cuh"

#include <algorithm>

#include "symmetric_product_parts.cuh"

namespace erlangen::kernels::cuda {
namespace sm90 {
namespace {

// The narrow tiles of all pairs.
struct PairTiles {
  static constexpr int kTile = kBlock;
  Triangle triangle;
  int64_t count;

  ERLANGEN_INLINE int64_t row(int64_t index) const {
    const Pair pair = pair_at(triangle, static_cast<int32_t>(index / 2));
    return int64_t{kTile} * row_of(pair, static_cast<int>(index % 2));
  }
  ERLANGEN_INLINE int64_t column(int64_t index) const {
    return int64_t{kTile} * pair_at(triangle, static_cast<int32_t>(index / 2)).column;
  }
};

// A block takes 32 rows of a square.
template <typename Element>
__global__ void __launch_bounds__(kPatch* kPatch)
    mirror_diagonal(const __grid_constant__ SymmetricProduct p, int square) {
  __shared__ Element patch[kPatch][kPatch + 2];
  Element* d = static_cast<Element*>(p.d) + blockIdx.z * p.d_batch;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t corner = static_cast<int64_t>(blockIdx.x) * square;
  const int64_t rows = corner + static_cast<int64_t>(blockIdx.y) * kPatch;
  for (int64_t columns = corner; columns <= rows; columns += kPatch) {
    // Of the patch on the diagonal too only what lies below it: the rest is being written.
    if (rows + y < p.n && columns + x <= rows + y) {
      patch[y][x] = d[(rows + y) * p.d_row + columns + x];
    }
    __syncthreads();
    const int64_t i = rows + x, j = columns + y;
    if (i < p.n && j < i) d[j * p.d_row + i] = patch[x][y];
    __syncthreads();
  }
}

template <typename Element>
cudaError_t finish(const SymmetricProduct& p, const Schedule& schedule, cudaStream_t stream) {
  if (schedule.parts > 1) {
    const PairTiles tiles = {schedule.triangle, int64_t{2} * schedule.pairs};
    return launch_add_parts<Element>(p, tiles, schedule.parts, schedule.partials, stream);
  }
  if (schedule.whole_squares) return cudaSuccess;
  constexpr int64_t kMostMatrices = 65535;  // where a grid's third dimension ends
  for (int64_t first = 0; first < p.batch; first += kMostMatrices) {
    SymmetricProduct some = p;
    some.d = static_cast<Element*>(p.d) + first * p.d_batch;
    const unsigned matrices = static_cast<unsigned>(std::min(p.batch - first, kMostMatrices));
    const int square = kBlock * schedule.triangle.width;
    const cudaError_t error =
        launch(dim3(schedule.triangle.columns, square / kPatch, matrices), dim3(kPatch, kPatch), 0,
               stream, mirror_diagonal<Element>, some, square);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace sm90

cudaError_t symmetric_product_sm90_finish(const SymmetricProduct& product,
                                          const sm90::Schedule& schedule, cudaStream_t stream) {
  return product.dtype == DType::float16 ? sm90::finish<__half>(product, schedule, stream)
                                         : sm90::finish<__nv_bfloat16>(product, schedule, stream);
}

}  // namespace erlangen::kernels::cuda
