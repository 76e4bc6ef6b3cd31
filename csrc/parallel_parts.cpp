#include "parallel_parts.h"

#include <omp.h>

// MKL's own; null where torch is built without it. Returns what was set; 0 is what all threads
// have.
extern "C" __attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);

namespace erlangen {

// First torch's own call, which in a thread new to it sets both numbers.
OneThread::OneThread() : threads_(at::get_num_threads()) {
  omp_set_num_threads(1);
  if (MKL_Set_Num_Threads_Local) mkl_threads_ = MKL_Set_Num_Threads_Local(1);
}

OneThread::~OneThread() {
  if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(mkl_threads_);
  omp_set_num_threads(threads_);
}

}  // namespace erlangen
