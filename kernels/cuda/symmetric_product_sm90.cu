// Symmetric products with TMA and wgmma, for sm_90a only. CUTLASS's warp-specialised kernel (one
// warp loads, two warp groups multiply) with two parts of our own: a scheduler that hands out the
// pairs of tiles of symmetric_product_sm90_tiles.h, and an epilogue that stores a tile off the
// diagonal twice, from the same registers: as it is, and into a column-major view of D.
//
// What is proven how. The kernel has not been run on a GPU yet.
//   - Every element of D is written exactly once: the scheduler's arithmetic, enumerated on the
//     host (tests/cpp/symmetric_product_sm90_tiles_test.cpp).
//   - What follows the kernel: on the host, after loops in place of wgmma and TMA
//     (tests/cpp/symmetric_product_sm90_cuda_test.cpp).
//   - Partial sums are added where they belong: static_assert below, against CUTLASS's layout of
//     the accumulators.
//   - wgmma and TMA in the machine code, neither spills nor local memory: the compiler's report and
//     the disassembly (tests/python/test_cuda_build.py).
//   - Tails of n and k: by the rules of TMA. What lies outside of a matrix is read as 0 and not
//     written, element by element.
//   - Not proven: speed, the estimates of plan_for, and that two elements whose factors are
//     exchanged come out of wgmma with equal bits.

#include "symmetric_product_sm90.cuh"

#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include <cstring>

#include "symmetric_product_sm90_finish.cuh"

namespace erlangen::kernels::cuda {
namespace sm90 {

// ---- Scheduler: CUTLASS asks it for the next tile, and for the steps of k that belong to it

struct LowerTriangle {};  // its name for CUTLASS

class Scheduler {
 public:
  using Params = Schedule;
  using Arguments = Schedule;
  using Pipeline = cutlass::PipelineEmpty;
  using ThrottlePipeline = cutlass::PipelineEmpty;
  struct CLCResponse {};
  struct SharedStorage {
    CUTLASS_DEVICE Pipeline::SharedStorage pipeline() { return {}; }
    CUTLASS_DEVICE ThrottlePipeline::SharedStorage throttle_pipeline() { return {}; }
    CUTLASS_DEVICE CLCResponse* data() { return nullptr; }
  };
  static constexpr bool IsDynamicPersistent = false;

  struct WorkTileInfo {
    int32_t M_idx, N_idx, L_idx;
    int32_t first_step, steps;
    int64_t partial;  // where this thread block's sums begin
    bool valid = false;

    CUTLASS_HOST_DEVICE bool is_valid() const { return valid; }
    CUTLASS_HOST_DEVICE int32_t reduction_subtile_idx() const { return -1; }
  };

  template <class Problem, class Tile, class Cluster>
  static Params to_underlying_arguments(const Problem&, const Tile&, const Cluster&,
                                        const cutlass::KernelHardwareInfo&,
                                        const Arguments& schedule, void*, uint32_t) {
    return schedule;
  }
  template <class Problem, class Accumulator>
  static size_t get_workspace_size(const Arguments&, const Problem&,
                                   const cutlass::KernelHardwareInfo&, uint32_t, uint32_t = 1) {
    return 0;
  }

  CUTLASS_DEVICE explicit Scheduler(const Params& params) : params_(params) {
    index_ = blockIdx.x / 2;
  }

  template <class Cluster>
  CUTLASS_DEVICE WorkTileInfo initial_work_tile_info(const Cluster&) const {
    return current();
  }
  CUTLASS_DEVICE cute::tuple<WorkTileInfo, bool> fetch_next_work(const WorkTileInfo&) {
    index_ += gridDim.x / 2;
    return cute::make_tuple(current(), true);
  }
  template <class State>
  CUTLASS_DEVICE cute::tuple<WorkTileInfo, bool> fetch_next_work(const WorkTileInfo& tile,
                                                                 const Pipeline&, const State&) {
    return fetch_next_work(tile);
  }

  template <class Problem, class Tile>
  CUTLASS_DEVICE static int get_work_k_tile_count(const WorkTileInfo& tile, const Problem&,
                                                  const Tile&) {
    return tile.steps;
  }
  CUTLASS_DEVICE static uint32_t get_work_k_tile_start(const WorkTileInfo& tile) {
    return tile.first_step;
  }

  // With more than one part the sums go to the workspace and the epilogue is left out.
  CUTLASS_DEVICE static bool compute_epilogue(const WorkTileInfo&, const Params& params) {
    return params.parts == 1;
  }
  template <class Accumulators>
  CUTLASS_DEVICE static void fixup(const Params& params, const WorkTileInfo& tile,
                                   const Accumulators& sums, uint32_t, uint32_t) {
    if constexpr (cute::size(Accumulators{}) == kPartialFloats / kMmaThreads) {
      if (params.parts == 1) return;
      // As the kernel numbers the threads that multiply. Two values stand side by side.
      const int thread = threadIdx.x % kMmaThreads;
      float* out = params.partials + tile.partial + accumulator_row(thread, 0) * kBlock +
                   accumulator_column(thread, 0);
      CUTLASS_PRAGMA_UNROLL
      for (int v = 0; v < cute::size(sums); v += 2) {
        *reinterpret_cast<float2*>(out + accumulator_row(0, v) * kBlock +
                                   accumulator_column(0, v)) = make_float2(sums(v), sums(v + 1));
      }
    }
  }
  CUTLASS_DEVICE static bool valid_warpgroup_in_work_tile(const WorkTileInfo&) { return true; }
  CUTLASS_DEVICE static bool requires_separate_reduction(const Params&) { return false; }

 private:
  CUTLASS_DEVICE WorkTileInfo current() const {
    WorkTileInfo tile;
    if (index_ >= params_.units) return tile;
    const Unit unit = unit_at(params_.triangle, params_.parts, params_.pairs, index_);
    const int rank = blockIdx.x % 2;
    tile.M_idx = row_of(unit.pair, rank);
    tile.N_idx = unit.pair.column;
    tile.L_idx = unit.matrix;
    tile.first_step = unit.part * params_.part_steps;
    tile.steps = unit.part + 1 < params_.parts ? params_.part_steps : params_.last_steps;
    tile.partial = partial_offset(params_.parts, params_.pairs, unit.matrix, unit.part,
                                  unit.index_in_matrix, rank);
    tile.valid = true;
    return tile;
  }

  const Params& params_;
  int32_t index_;
};

// ---- Epilogue: the store of the mirror, left out on the diagonal

template <class Store, int kWidth>
struct MirrorStore : Store {
  using Store::Store;

  template <class Callbacks>
  struct Mirror : Callbacks {
    bool mirrored;

    CUTLASS_DEVICE Mirror(Callbacks&& callbacks, bool mirrored)
        : Callbacks(static_cast<Callbacks&&>(callbacks)), mirrored(mirrored) {}

    CUTLASS_DEVICE void postreduce(int m, int n, int iteration, bool issue) {
      if (mirrored) Callbacks::postreduce(m, n, iteration, issue);
    }
    CUTLASS_DEVICE void tma_store(int m, int n, int iteration, bool issue) {
      if (mirrored) Callbacks::tma_store(m, n, iteration, issue);
    }
  };

  template <bool kReferenceSource, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(
      const cutlass::epilogue::fusion::detail::ConsumerStoreArgs<Args...>& args) {
    auto callbacks = Store::template get_consumer_store_callbacks<kReferenceSource>(args);
    const int32_t row = cute::get<0>(args.tile_coord_mnkl);
    const int32_t column = cute::get<1>(args.tile_coord_mnkl);
    return Mirror<decltype(callbacks)>(cute::move(callbacks), is_mirrored(row, column, kWidth));
  }
};

}  // namespace sm90
}  // namespace erlangen::kernels::cuda

template <class Arch, class Tile, class Cluster, uint32_t kStages>
struct cutlass::gemm::kernel::detail::TileSchedulerSelector<
    erlangen::kernels::cuda::sm90::LowerTriangle, Arch, Tile, Cluster, kStages> {
  using Scheduler = erlangen::kernels::cuda::sm90::Scheduler;
};

namespace erlangen::kernels::cuda {
namespace sm90 {

// ---- The kernel, put together

template <typename Element, int kWidth>
struct Build {
  using Tile = cute::Shape<cute::Int<kBlock>, cute::Int<kBlock * kWidth>, cute::Int<kStepK>>;
  using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;

  // A wide tile leaves room for four steps of k only if the epilogue goes by 16 columns at a time.
  using Part = cute::Shape<cute::Int<kBlock>, cute::Int<kWidth == 1 ? 32 : 16>>;
  static constexpr int kLoads = 4;   // parts of C in shared memory, overwritten with D
  static constexpr int kStores = 2;  // of them being written out
  using Policy =
      cutlass::epilogue::Sm90TmaWarpSpecialized<kLoads, kStores, cute::size(Part{}) / kMmaThreads,
                                                /*ReuseSmemC=*/true,
                                                /*DelayTmaStore=*/false>;

  using Transposed = cutlass::detail::TagToStrideC_t<ColumnMajor>;
  using Store = cutlass::epilogue::fusion::Sm90AuxStore<
      kStores, Part, Element, cutlass::FloatRoundStyle::round_to_nearest, Transposed,
      decltype(cutlass::epilogue::collective::detail::sm90_get_epilogue_smem_swizzle_layout_atom<
               Transposed, Element, Part>()),
      decltype(cutlass::epilogue::collective::detail::sm90_get_smem_store_op_for_accumulator<
               Transposed, Element, Part>()),
      8, /*EnableNullptr=*/false>;
  using Fusion = cutlass::epilogue::fusion::Sm90EVT<
      MirrorStore<Store, kWidth>,
      cutlass::epilogue::fusion::Sm90LinearCombination<Element, float, Element, float>>;
  using Epilogue = typename cutlass::epilogue::collective::detail::Sm90TmaBuilderImpl<
      Tile, Part, float, float, Element, RowMajor, 8, Element, RowMajor, 8, Fusion,
      Policy>::CollectiveOp;

  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, RowMajor, 8, Element,
      ColumnMajor, 8, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;
  static_assert(Mainloop::DispatchPolicy::Stages >= 4, "steps of k in flight");

  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop,
                                                      Epilogue, LowerTriangle>;
  static_assert(Kernel::SharedStorageSize <= 227 * 1024, "shared memory of a block");
};

// Both functions are linear in the bits of their arguments, so that powers of two tell all.
template <class Mma>
constexpr bool accumulators_are_where_we_think() {
  const auto place = Mma{}.get_layoutC_TV();
  for (int thread = 0; thread < kMmaThreads; thread = thread ? 2 * thread : 1) {
    if (place(thread, 0) != accumulator_row(thread, 0) + kBlock * accumulator_column(thread, 0)) {
      return false;
    }
  }
  for (int v = 0; v < kPartialFloats / kMmaThreads; v = v ? 2 * v : 1) {
    if (place(0, v) != accumulator_row(0, v) + kBlock * accumulator_column(0, v)) return false;
  }
  return true;
}
static_assert(
    accumulators_are_where_we_think<typename Build<cutlass::half_t, 1>::Mainloop::TiledMma>(),
    "layout of the accumulators");

// ---- Launch

namespace {

// Whether two operands' memory has a byte in common, taken from first to last.
bool overlap(const SymmetricProduct& p, const void* x, int64_t x_row, int64_t x_batch,
             int64_t cols) {
  const auto end = [&](const void* data, int64_t row, int64_t matrix, int64_t columns) {
    return reinterpret_cast<uintptr_t>(data) +
           2 * static_cast<uintptr_t>((p.batch - 1) * matrix + (p.n - 1) * row + columns);
  };
  return reinterpret_cast<uintptr_t>(p.d) < end(x, x_row, x_batch, cols) &&
         reinterpret_cast<uintptr_t>(x) < end(p.d, p.d_row, p.d_batch, p.n);
}

Schedule schedule_of(const SymmetricProduct& p, void* workspace) {
  const bool gram = symmetric_product_is_gram(p);
  return schedule_for(plan_for(p.n, p.k, gram), p.n, p.k, p.batch, gram, workspace);
}

// An encoded descriptor is not all zeros, one that the driver refused is.
template <class Copy>
bool encoded(const Copy& copy) {
  const cute::TmaDescriptor zero = {};
  return std::memcmp(copy.get_tma_descriptor(), &zero, sizeof(zero)) != 0;
}

template <typename Element, int kWidth>
cudaError_t multiply(const SymmetricProduct& p, const Schedule& schedule, cudaStream_t stream) {
  using Kernel = typename Build<Element, kWidth>::Kernel;
  const int n = static_cast<int>(p.n), k = static_cast<int>(p.k), batch = static_cast<int>(p.batch);
  // TMA wants some stride between matrices even where there is but one.
  const auto matrix = [&](int64_t stride, int64_t row) { return batch == 1 ? row : stride; };
  const auto row_major = [&](int64_t row, int64_t stride) {
    return cute::make_stride(row, cute::_1{}, matrix(stride, row));
  };
  const Element* c = static_cast<const Element*>(p.beta == 0.0f ? p.d : p.c);
  Element* d = static_cast<Element*>(p.d);

  typename Kernel::Arguments arguments;
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = cute::make_shape(n, n, k, batch);
  arguments.mainloop = {static_cast<const Element*>(p.a), row_major(p.a_row, p.a_batch),
                        static_cast<const Element*>(p.b), row_major(p.b_row, p.b_batch)};
  arguments.epilogue.ptr_C = c;
  arguments.epilogue.dC =
      p.beta == 0.0f ? row_major(p.d_row, p.d_batch) : row_major(p.c_row, p.c_batch);
  arguments.epilogue.ptr_D = d;
  arguments.epilogue.dD = row_major(p.d_row, p.d_batch);
  auto& combination = arguments.epilogue.thread.op_0;  // beta * C + (alpha * sums)
  combination.op_0.scalars[0] = p.beta;
  combination.op_2.op_0.scalars[0] = p.alpha;
  auto& mirror = arguments.epilogue.thread.op_1;
  mirror.ptr_aux = d;
  mirror.dAux = cute::make_stride(cute::_1{}, p.d_row, matrix(p.d_batch, p.d_row));
  arguments.scheduler = schedule;
  int device;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error =
      cudaDeviceGetAttribute(&arguments.hw_info.sm_count, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  typename Kernel::Params params = Kernel::to_underlying_arguments(arguments, nullptr);
  if (!encoded(params.mainloop.tma_load_a) || !encoded(params.mainloop.tma_load_b) ||
      !encoded(params.epilogue.tma_load_c) || !encoded(params.epilogue.tma_store_d) ||
      !encoded(params.epilogue.thread.op_1.tma_store_aux)) {
    return cudaErrorInvalidValue;
  }

  const auto kernel = cutlass::device_kernel<Kernel>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               Kernel::SharedStorageSize);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {2, 1, 1};
  const int at_once = arguments.hw_info.sm_count / 2;
  cudaLaunchConfig_t config = {};
  config.gridDim = 2 * (schedule.units < at_once ? schedule.units : at_once);
  config.blockDim = Kernel::MaxThreadsPerBlock;
  config.dynamicSmemBytes = Kernel::SharedStorageSize;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, params);
}

template <typename Element>
cudaError_t multiply(const SymmetricProduct& p, void* workspace, cudaStream_t stream) {
  const Schedule schedule = schedule_of(p, workspace);
  const cudaError_t error = schedule.triangle.width == 1
                                ? multiply<Element, 1>(p, schedule, stream)
                                : multiply<Element, 2>(p, schedule, stream);
  return error == cudaSuccess ? symmetric_product_sm90_finish(p, schedule, stream) : error;
}

}  // namespace
}  // namespace sm90

// Everything else in this file is hidden: torch has a CUTLASS of its own, of another version.
__attribute__((visibility("default"))) size_t symmetric_product_sm90_workspace(
    const SymmetricProduct& p) {
  if (!symmetric_product_sm90_supports(p)) return 0;
  const sm90::Schedule s = sm90::schedule_of(p, nullptr);
  if (s.parts == 1) return 0;
  return sizeof(float) *
         sm90::partial_offset(s.parts, s.pairs, static_cast<int32_t>(p.batch), 0, 0, 0);
}

__attribute__((visibility("default"))) cudaError_t symmetric_product_sm90(const SymmetricProduct& p,
                                                                          void* workspace,
                                                                          cudaStream_t stream) {
  if (!symmetric_product_sm90_supports(p) || sm90::overlap(p, p.a, p.a_row, p.a_batch, p.k) ||
      sm90::overlap(p, p.b, p.b_row, p.b_batch, p.k) ||
      (p.beta != 0.0f && sm90::overlap(p, p.c, p.c_row, p.c_batch, p.n)) ||
      (workspace == nullptr && symmetric_product_sm90_workspace(p) > 0)) {
    return cudaErrorInvalidValue;
  }
  return p.dtype == DType::float16 ? sm90::multiply<cutlass::half_t>(p, workspace, stream)
                                   : sm90::multiply<cutlass::bfloat16_t>(p, workspace, stream);
}

}  // namespace erlangen::kernels::cuda
