// Calls of ATen side by side, each in one thread: with more threads, what the libraries below it do
// depends on their number and on the batch.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <cstdint>

namespace erlangen {

// While it lives, MKL and oneDNN compute this thread's products for one thread. Within a parallel
// region they have only one, but cut sums for as many as torch has: oneDNN always, MKL after
// torch.set_num_threads.
class OneThread {
 public:
  OneThread();
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int threads_, mkl_threads_ = 0;  // before
};

// f(begin, end) over parts of [0, count), in parallel unless that is going on already. An idle
// second part keeps a lone one in a parallel region, and so in one thread.
template <typename F>
void parallel_parts(int64_t count, F&& f) {
  at::parallel_for(0, std::max<int64_t>(count, 2), 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;  // threads do not inherit no_grad
    const OneThread one_thread;
    if (begin < count) f(begin, std::min(end, count));
  });
}

}  // namespace erlangen
