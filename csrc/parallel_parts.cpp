#include "parallel_parts.h"

// MKL's own, which torch exports where it is built with MKL. 0 stands for what all threads have.
extern "C" __attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);

namespace erlangen {

MklInOneThread::MklInOneThread()
    : before_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {}

MklInOneThread::~MklInOneThread() {
  if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before_);
}

}  // namespace erlangen
