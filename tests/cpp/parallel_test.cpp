// Whether the library's at::parallel_for has threads: compiled without OpenMP it runs serially and
// says nothing. So this program stands between liberlangen and its own kernel, which the dynamic
// linker allows: the library's calls arrive here, are counted, and go on to the kernel.

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include "kernels/cpu/row_norm.h"
#include "parallel_parts.h"
#include "test_helpers.h"

extern "C" __attribute__((weak)) int MKL_Get_Max_Threads();

namespace {

struct Chunk {
  int64_t begin, end;
  std::thread::id thread;
};

std::mutex mutex;
std::vector<Chunk> chunks;

}  // namespace

namespace erlangen::kernels::cpu {

void row_norm_step(const RowNormTensor& tensor, const RowNormOptions& options, int64_t begin,
                   int64_t end) {
  static const auto next = [] {
    Dl_info own;
    dladdr(reinterpret_cast<void*>(&row_norm_step), &own);
    return reinterpret_cast<decltype(&row_norm_step)>(dlsym(RTLD_NEXT, own.dli_sname));
  }();
  {
    const std::lock_guard lock(mutex);
    chunks.push_back({begin, end, std::this_thread::get_id()});
  }
  next(tensor, options, begin, end);
}

}  // namespace erlangen::kernels::cpu

namespace erlangen {
namespace {

std::vector<Chunk> chunks_of_a_step(int threads, const torch::Tensor& param) {
  const int before = at::get_num_threads();
  at::set_num_threads(threads);
  RowNorm optimizer(std::vector<torch::Tensor>{param});
  testing::set_grads({param}, 1);
  chunks.clear();
  optimizer.step();
  at::set_num_threads(before);
  std::sort(chunks.begin(), chunks.end(), [](auto& a, auto& b) { return a.begin < b.begin; });
  return chunks;
}

TEST(Parallel, TwoThreadsTakeTwoChunks) {
  const auto param = testing::parameter({2048, 128});
  const auto twin = param.detach().clone().requires_grad_();
  const auto one = chunks_of_a_step(1, param);
  ASSERT_EQ(one.size(), 1u);
  const auto two = chunks_of_a_step(2, twin);
  ASSERT_EQ(two.size(), 2u);
  EXPECT_NE(two[0].thread, two[1].thread);
  EXPECT_EQ(two[0].begin, 0);
  EXPECT_EQ(two[0].end, two[1].begin);
  EXPECT_EQ(two[1].end, 2048);
  EXPECT_TRUE(testing::same_bits(param, twin));
}

// What oneDNN goes by, and what MKL does.
bool computes_for(int threads) {
  return at::get_num_threads() == threads &&
         (!MKL_Get_Max_Threads || MKL_Get_Max_Threads() == threads);
}

TEST(Parallel, LibrariesComputeForOneThreadWithin) {
  ASSERT_EQ(MKL_Get_Max_Threads != nullptr, at::hasMKL());
  const int before = at::get_num_threads();
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    ASSERT_TRUE(computes_for(threads));
    std::atomic<int> wrong = 0;
    for (const int64_t count : {1, 5}) {
      parallel_parts(count, [&](int64_t, int64_t) {
        parallel_parts(1, [&](int64_t, int64_t) { wrong += !computes_for(1); });
        wrong += !computes_for(1);  // the inner guard has put back what it found
      });
    }
    std::thread([&] {  // a thread that torch has not seen yet
      const OneThread one_thread;
      wrong += !computes_for(1);
    })
        .join();
    EXPECT_EQ(wrong, 0);
    const auto fails = [](int64_t, int64_t) { throw std::runtime_error("stop"); };
    EXPECT_THROW(parallel_parts(2, fails), std::runtime_error);
    EXPECT_TRUE(computes_for(threads));
  }
  at::set_num_threads(before);
}

}  // namespace
}  // namespace erlangen
