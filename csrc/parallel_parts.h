// Calls of ATen side by side, each in one thread: what the libraries below it do with more of them
// depends on their number and on the batch.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace erlangen {

// While it lives, MKL computes this thread's products for one thread. Within a parallel region it
// would still cut sums for as many as torch has, and then find itself alone.
class MklInOneThread {
 public:
  MklInOneThread();
  ~MklInOneThread();
  MklInOneThread(const MklInOneThread&) = delete;
  MklInOneThread& operator=(const MklInOneThread&) = delete;

 private:
  int before_;
};

// f(begin, end) over parts of [0, count), in parallel unless that is going on already. An idle
// second part keeps a lone one in a parallel region, and so in one thread.
template <typename F>
void parallel_parts(int64_t count, F&& f) {
  at::parallel_for(0, std::max<int64_t>(count, 2), 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;  // threads do not inherit no_grad
    const MklInOneThread mkl_in_one_thread;
    if (begin < count) f(begin, std::min(end, count));
  });
}

}  // namespace erlangen
