// Runs our .cu files on the CPU, compiled as C++ with ERLANGEN_CUDA_ON_HOST defined, so that a
// kernel can be tested on a machine without a GPU, or even a CUDA toolkit.
//
// What is emulated. The blocks of a grid run one after another. Each thread of a block is a fiber
// with a stack of its own; it runs until it reaches a barrier or an exchange within its warp, and
// goes on when all who take part are there. Which thread goes on first is the test's choice
// (Order), so that a missing barrier gives different bits in different orders, or poison: before
// each block, shared memory, static and dynamic, is filled with a pattern that is NaN in every
// floating-point type and a large integer; so is the target of an asynchronous copy from its start
// to the wait that ends it. These fail the launch, with a sentence for take_failure(): a barrier or
// exchange that not all threads reach, or that they reach at different places in the source; an
// exchange with a lane that takes no part; misaligned or non-shared addresses of the instructions
// in ptx.cuh; writing past the end of dynamic shared memory. In some of these hardware would go on:
// the rules are CUDA's for portable code.
//
// What this cannot show. The memory model: writes are seen at once and in program order, between
// blocks too, and blocks never run at the same time. Races that no order of whole stretches between
// two barriers makes visible. The last bits of device arithmetic: nvcc contracts a * b + c, tensor
// cores sum in another order. Time, registers, occupancy, bank conflicts; misaligned or stray
// accesses to global memory, except what the host itself notices; hardware faults; code under
// __CUDA_ARCH__.

#pragma once

#include "cuda_on_host/types.h"

#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace cuda_on_host {

// ---- For tests

// Warps run as far as the next barrier of the block, lanes to the next exchange of their warp, from
// the first or from the last; or warps take turns at random and lanes go in random order. Blocks
// go in the same order.
enum class Order { forward, backward, shuffled };

struct Device {
  int sms = 4;
  int blocks_on_sm = 1;  // what the occupancy query says
  int capability = 80;
  Order order = Order::forward;
  uint64_t seed = 0;  // of Order::shuffled
};
extern Device device;

struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
};
// All that came since the test cleared it.
extern std::vector<Launch> launches;

// What the first failed launch since the last call died of; empty if none did.
std::string take_failure();

// ---- For launch.cuh and the runtime

constexpr size_t kMaxSharedBytes = 227 * 1024;  // of a block

// Keeps an error for cudaGetLastError, and returns it.
cudaError_t set_error(cudaError_t error);

cudaError_t run(const Launch& launch, const std::function<void()>& kernel);

template <typename... Parameters, typename... Arguments>
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   void (*kernel)(Parameters...), Arguments&&... arguments) {
  const std::tuple<std::decay_t<Parameters>...> copies(static_cast<Parameters>(arguments)...);
  return run({reinterpret_cast<const void*>(kernel), grid, block, shared_bytes},
             [&] { std::apply(kernel, copies); });
}

void* dynamic_shared();

// ---- For ptx.cuh and the intrinsics. All are called by a kernel.

// Ends the launch.
void fail(const std::string& why);

using Site = std::source_location;
// Gets the data of all who take part, null for the others, when the last of them has come.
using Combine = void (*)(void* const* data, int count);

void warp_rendezvous(const char* name, unsigned mask, void* data, Combine combine,
                     Site site = Site::current());
void block_rendezvous(const char* name, void* data, Combine combine, Site site = Site::current());

// Fails unless the bytes lie in the block's shared memory, at a multiple of their number.
void check_shared(const char* name, const void* data, size_t bytes);

// The first `bytes` of `size`, then zeros, as late as the matching wait.
void copy_later(void* shared, const void* global, int bytes, int size);
void commit_copies();
void wait_for_copies(int pending);

}  // namespace cuda_on_host

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = cuda_on_host::device.blocks_on_sm;
  return cudaSuccess;
}

#include "cuda_on_host/intrinsics.h"
