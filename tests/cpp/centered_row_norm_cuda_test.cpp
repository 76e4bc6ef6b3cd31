// The CUDA kernels of the centered row norm, run on the host, against the oracle in double, and
// their division of work.

#include "kernels/cuda/centered_row_norm.cuh"

#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "centered_row_norm_oracle.h"
#include "cuda_on_host.h"
#include "kernels/cuda/centered_row_norm_tiles.h"

namespace {

using namespace erlangen::testing;
using cuda_on_host::Device;
using cuda_on_host::Order;
namespace cuda = erlangen::kernels::cuda;
namespace centered = erlangen::kernels::centered;

class CenteredRowNormCuda : public testing::Test {
 protected:
  void SetUp() override {
    cuda_on_host::device = {};
    cuda_on_host::launches.clear();
  }
};

void step_all(const std::vector<RowNormTensor>& tensors, const RowNormOptions& options,
              std::vector<char>* scratch) {
  ASSERT_EQ(cuda::centered_row_norm_step(tensors.data(), tensors.size(), options,
                                         poisoned(scratch, tensors, options), nullptr),
            cudaSuccess)
      << cuda_on_host::take_failure();
}
void step(Problem* problem, std::vector<char>* scratch) {
  step_all({problem->tensor()}, problem->options, scratch);
}

TEST_F(CenteredRowNormCuda, MatchesOracleOnEveryBranch) {
  unsigned seed = 0;
  std::set<const void*> kernels;
  for (const Types& types : kTypes) {
    const bool narrow = types.dtype == DType::float16;
    for (const bool vectors : {false, true}) {
      for (const int64_t rows : {1, 9, 70}) {
        for (const int64_t cols : {8, 520, 2048, 2056}) {
          for (int flags = seed % 4; flags < 16; flags += 4) {
            if (cols > 1000 && (rows != 9 || flags % 8 > 3)) continue;  // take long to check
            RowNormOptions options = make_options(cols, types.dtype, types.momentum_dtype);
            options.nesterov = flags & 1;
            options.maximize = flags & 2;
            options.gradient_support = flags & 4;
            options.stochastic_rounding = flags & 8;
            const double scales[] = {narrow ? 1e-2 : 1e-30, 1, narrow ? 1e2 : 1e30};
            const int64_t matrices = cols < 100 ? 3 : 1;
            Problem problem(matrices * rows, options, vectors ? 8 : 3, vectors ? 0 : 1, rows);
            ++seed;
            problem.draw(seed, scales[seed % 3]);
            problem.clear(&problem.grad, rows / 2);
            SCOPED_TRACE(testing::Message()
                         << "dtype " << static_cast<int>(types.dtype) << " momentum "
                         << static_cast<int>(types.momentum_dtype) << " rows " << rows << " cols "
                         << cols << " vectors " << vectors << " flags " << flags);
            cuda_on_host::launches.clear();
            const Problem before = problem;
            centered_step(step, &problem);
            if (HasFatalFailure()) return;
            ASSERT_EQ(cuda_on_host::launches.size(), 5u);
            for (const auto& launch : cuda_on_host::launches) kernels.insert(launch.kernel);
            check_centered(before, problem);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
  // Sums, two ways to the units, update for each types and width; two means in two types.
  EXPECT_EQ(kernels.size(), kTypes.size() * 2 * 4 + 4);
}

TEST_F(CenteredRowNormCuda, EqualRowsDoNotMove) { check_equal_rows_do_not_move(step); }
TEST_F(CenteredRowNormCuda, ShiftsDoNotMatter) { check_shifts_do_not_matter(step); }
TEST_F(CenteredRowNormCuda, ScaleOfTheGradientDoesNotMatter) { check_scale_does_not_matter(step); }
TEST_F(CenteredRowNormCuda, NotANumberStaysInItsMatrix) { check_nan_stays_in_its_matrix(step); }
TEST_F(CenteredRowNormCuda, MeanOfManyRows) { check_mean_of_many_rows(step, 15001); }
TEST_F(CenteredRowNormCuda, OverflowChangesNothing) { check_overflow_changes_nothing(step); }
TEST_F(CenteredRowNormCuda, ReadsNumbersAtRunTime) { check_reads_numbers_at_run_time(step); }
TEST_F(CenteredRowNormCuda, ZeroGradientMovesNothing) { check_zero_gradient(step); }

TEST_F(CenteredRowNormCuda, OrderAndDeviceDoNotMatter) {
  const Device devices[] = {{1, 1, 80, Order::backward, 0},
                            {3, 2, 80, Order::shuffled, 1},
                            {132, 4, 80, Order::shuffled, 2}};
  for (const Types& types : {kTypes[0], kTypes[2], kTypes[4]}) {
    for (const int64_t cols : {264, 2056}) {
      Problem start(70, make_options(cols, types.dtype, types.momentum_dtype));
      start.draw(7, 1);
      start.options.gradient_support = true;
      cuda_on_host::device = {};
      Problem expected = start;
      centered_step(step, &expected);
      for (const Device& device : devices) {
        cuda_on_host::device = device;
        Problem problem = start;
        centered_step(step, &problem);
        ASSERT_EQ(problem.param.bytes, expected.param.bytes) << cols << " columns";
        ASSERT_EQ(problem.momentum.bytes, expected.momentum.bytes) << cols << " columns";
      }
    }
  }
}

// Aligned and unaligned tensors, empty ones, stacks, more than a table holds: each as if it were
// alone.
TEST_F(CenteredRowNormCuda, ManyTensorsInOneCall) {
  const int64_t cols = 72;
  std::vector<Problem> together;
  size_t aligned = 0, unaligned = 0;
  for (int i = 0; i < 2 * cuda::kCenteredTensorsPerLaunch + 5; ++i) {
    const bool offset = i % 3 == 1;
    const int64_t rows = i % 7 * 13;
    Problem problem((1 + i % 2) * rows, make_options(cols), offset ? 3 : 8, offset ? 1 : 0, rows);
    problem.draw(100 + i, 1);
    problem.decay = 1 - 0.001 * i;
    problem.step_size = 0.01 * i;
    if (rows > 0) ++(offset ? unaligned : aligned);
    together.push_back(problem);
  }
  std::vector<Problem> alone = together;
  std::vector<RowNormTensor> tensors;
  for (Problem& problem : together) tensors.push_back(problem.tensor());
  std::vector<char> scratch;
  step_all(tensors, together[0].options, &scratch);
  const auto calls = [](size_t count) {
    return (count + cuda::kCenteredTensorsPerLaunch - 1) / cuda::kCenteredTensorsPerLaunch;
  };
  EXPECT_EQ(cuda_on_host::launches.size(), 5 * (calls(aligned) + calls(unaligned)));
  for (size_t i = 0; i < alone.size(); ++i) {
    if (alone[i].rows == 0) continue;
    const Problem before = alone[i];
    centered_step(step, &alone[i]);
    check_centered(before, alone[i]);
    ASSERT_EQ(alone[i].param.bytes, together[i].param.bytes) << i;
    ASSERT_EQ(alone[i].momentum.bytes, together[i].momentum.bytes) << i;
  }
}

// Each row of each matrix in one chunk, and chunks of a matrix numbered from 0.
template <int64_t kRows>
void check_each_row_once(const cuda::CenteredTable& table) {
  std::vector<std::vector<int>> visits(table.count);
  for (int64_t t = 0; t < table.count; ++t) visits[t].assign(table.tensors[t].rows, 0);
  std::set<std::tuple<int, int64_t, int64_t>> chunks;
  for (int64_t i = 0; i < cuda::chunks_in<kRows>(table); ++i) {
    const cuda::ChunkOfTable chunk = cuda::chunk_of<kRows>(table, i);
    const int64_t inner = table.tensors[chunk.tensor].inner;
    ASSERT_EQ(chunk.begin, chunk.chunk * kRows);
    ASSERT_LT(chunk.begin, chunk.end);
    ASSERT_LE(chunk.end, inner);
    for (int64_t r = chunk.begin; r < chunk.end; ++r) {
      ++visits.at(chunk.tensor).at(chunk.matrix * inner + r);
    }
    ASSERT_TRUE(chunks.insert({chunk.tensor, chunk.matrix, chunk.chunk}).second);
  }
  for (const auto& rows : visits) {
    for (const int count : rows) ASSERT_EQ(count, 1);
  }
}

TEST_F(CenteredRowNormCuda, EachRowOnce) {
  std::vector<RowNormTensor> tensors(50);
  for (size_t i = 0; i < tensors.size(); ++i) {
    tensors[i] = {};
    tensors[i].inner = static_cast<int64_t>(i * 37 % 200);  // 0 among them
    tensors[i].rows = tensors[i].inner * static_cast<int64_t>(1 + i % 4);
  }
  const RowNormOptions options = make_options(64);
  size_t seen = 0;
  char* scratch = nullptr;
  for (int64_t begin = 0; begin < 50;) {
    cuda::CenteredTable table;
    begin = cuda::fill_table(tensors.data(), 50, begin, true, options, 4, 4, &scratch, &table);
    check_each_row_once<centered::kChunkRows>(table);
    check_each_row_once<centered::kUnitRows>(table);
    check_each_row_once<cuda::kAllRows>(table);
    seen += table.count;
  }
  EXPECT_EQ(seen, 49u);
}

// A matrix of 4096 rows has rows enough for two blocks on nearly all of an H100's 132
// multiprocessors, and what its chunks' sums move is little beside 28 bytes an element.
TEST_F(CenteredRowNormCuda, OneMatrixFillsALargeDevice) {
  const int64_t size = 4096;
  RowNormTensor tensor = {};
  tensor.rows = tensor.inner = size;
  const RowNormOptions options = make_options(size);
  char* scratch = nullptr;
  cuda::CenteredTable table;
  cuda::fill_table(&tensor, 1, 0, true, options, 4, 4, &scratch, &table);
  EXPECT_GE(cuda::chunks_in<centered::kUnitRows>(table), 1.9 * 132);
  const int64_t columns = centered::padded(size);
  const int64_t sums = cuda::chunks_in<centered::kChunkRows>(table) * columns * sizeof(double);
  const int64_t units = cuda::chunks_in<centered::kUnitRows>(table) * columns * sizeof(float);
  EXPECT_LT(2.0 * (sums + units), 0.03 * 28 * size * size);  // written and read
}

TEST_F(CenteredRowNormCuda, NothingToDo) {
  Problem empty(0, make_options(64));
  centered_step(step, &empty);
  EXPECT_TRUE(cuda_on_host::launches.empty());
  Problem cautious(4, make_options(64));
  cautious.options.cautious = true;
  const RowNormTensor tensor = cautious.tensor();
  EXPECT_EQ(cuda::centered_row_norm_step(&tensor, 1, cautious.options, nullptr, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
