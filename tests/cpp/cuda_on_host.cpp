// The fibers of cuda_on_host.h and who runs next.

#include "cuda_on_host.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <numeric>
#include <utility>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// ---- Switching stacks: what a called function must preserve is pushed, the stack pointer stored
// in *from and taken from `to`. The library's swapcontext also makes a system call each time.

extern "C" void cuda_on_host_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.type cuda_on_host_switch, @function
cuda_on_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_host_switch, .-cuda_on_host_switch
)");
constexpr int kSavedWords = 8;  // six registers, the return address, the entry's own
constexpr int kReturnWord = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.type cuda_on_host_switch, %function
cuda_on_host_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cuda_on_host_switch, .-cuda_on_host_switch
)");
constexpr int kSavedWords = 20;
constexpr int kReturnWord = 11;
#else
#error "cuda_on_host knows x86-64 and aarch64"
#endif

namespace cuda_on_host {

Device device;
std::vector<Launch> launches;

namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 227 * 1024;
constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kGuardBytes = 4096;      // below each stack, without access
constexpr size_t kFenceBytes = 256;       // after dynamic shared memory
constexpr uint32_t kPoison = 0x7fffffff;  // NaN as one float, half a double, or two halves

void poison(void* data, size_t bytes) {
  auto* p = static_cast<unsigned char*>(data);
  for (size_t i = 0; i < bytes; i += 4)
    std::memcpy(p + i, &kPoison, std::min<size_t>(4, bytes - i));
}

std::string failure;
cudaError_t last_error = cudaSuccess;

// ---- Threads

struct Rendezvous {
  const char* name;
  bool block;
  unsigned mask;
  void* data;
  Combine combine;
  Site site;
};

struct Copy {
  void* to;
  const void* from;
  int bytes, size, group;
};

enum class State { ready, waits, exited };

struct Fiber {
  void* stack;  // its pointer, while another runs
  State state;
  const Rendezvous* at;
  uint3 index;
  std::vector<Copy> copies;  // under way, oldest first
  int group;                 // of the next copy
};

Fiber fibers[kMaxThreads];
Fiber* current = nullptr;
void* scheduler_stack;
const std::function<void()>* kernel_call;
int thread_count;
bool block_failed;

void leave() { cuda_on_host_switch(&current->stack, scheduler_stack); }

void run_thread() {
  (*kernel_call)();
  current->state = State::exited;
  leave();
}

unsigned char* stacks() {
  static unsigned char* const memory = [] {
    const size_t each = kGuardBytes + kStackBytes;
    void* p = mmap(nullptr, kMaxThreads * each, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    for (int i = 0; i < kMaxThreads; ++i) {
      mprotect(static_cast<unsigned char*>(p) + i * each, kGuardBytes, PROT_NONE);
    }
    return static_cast<unsigned char*>(p);
  }();
  return memory;
}

void prepare(int thread) {
  Fiber& fiber = fibers[thread];
  fiber.state = State::ready;
  fiber.at = nullptr;
  const unsigned t = static_cast<unsigned>(thread);
  fiber.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
  fiber.copies.clear();
  fiber.group = 0;
  auto** top = reinterpret_cast<void**>(stacks() + (thread + 1) * (kGuardBytes + kStackBytes));
  top -= kSavedWords;
  std::fill(top, top + kSavedWords, nullptr);
  top[kReturnWord] = reinterpret_cast<void*>(run_thread);
  fiber.stack = top;
}

void resume(int thread) {
  current = &fibers[thread];
  threadIdx = current->index;
  cuda_on_host_switch(&scheduler_stack, current->stack);
  current = nullptr;
}

// ---- Shared memory

struct Range {
  unsigned char* data = nullptr;
  size_t bytes = 0;
  bool holds(const void* p, size_t size) const {
    const auto* c = static_cast<const unsigned char*>(p);
    return c >= data && c + size <= data + bytes;
  }
};

thread_local int a_thread_local_variable;

// The executable's thread-local variables, on the thread that asks. Only the tests' own code, which
// is linked into it, has any there.
Range static_shared() {
  Range range;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          if (info->dlpi_phdr[i].p_type != PT_TLS || info->dlpi_tls_data == nullptr) continue;
          const Range found{static_cast<unsigned char*>(info->dlpi_tls_data),
                            info->dlpi_phdr[i].p_memsz};
          if (!found.holds(&a_thread_local_variable, sizeof(int))) continue;
          *static_cast<Range*>(out) = found;
          return 1;
        }
        return 0;
      },
      &range);
  if (range.data == nullptr) std::abort();
  return range;
}

Range shared_variables;
Range dynamic;

unsigned char* dynamic_memory() {
  static auto* const memory =
      static_cast<unsigned char*>(std::aligned_alloc(1024, kMaxSharedBytes + 1024));
  return memory;
}

// ---- Who runs next

uint64_t random_state;

// SplitMix64.
uint32_t draw(uint32_t below) {
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return static_cast<uint32_t>(((z ^ z >> 31) >> 32) * below >> 32);
}

// 0 ... count-1 in the device's order.
void arrange(int* places, int count) {
  std::iota(places, places + count, 0);
  if (device.order == Order::backward) std::reverse(places, places + count);
  if (device.order == Order::shuffled) {
    for (int i = count - 1; i > 0; --i) std::swap(places[i], places[draw(i + 1)]);
  }
}

int lanes_of(int warp) { return std::min(kWarp, thread_count - warp * kWarp); }

bool any_ready(int warp) {
  const Fiber* first = fibers + warp * kWarp;
  return std::any_of(first, first + lanes_of(warp),
                     [](const Fiber& f) { return f.state == State::ready; });
}

int next_warp() {
  const int warps = (thread_count + kWarp - 1) / kWarp;
  int ready[kMaxThreads / kWarp];
  int count = 0;
  for (int w = 0; w < warps; ++w) {
    if (any_ready(w)) ready[count++] = w;
  }
  if (count == 0) return -1;
  if (device.order == Order::shuffled) return ready[draw(count)];
  return ready[device.order == Order::forward ? 0 : count - 1];
}

void release(Fiber* const* who, int count) {
  void* data[kMaxThreads] = {};
  const Combine combine =
      (*std::find_if(who, who + count, [](Fiber* f) { return f; }))->at->combine;
  if (combine != nullptr) {
    for (int i = 0; i < count; ++i) data[i] = who[i] == nullptr ? nullptr : who[i]->at->data;
    combine(data, count);
  }
  for (int i = 0; i < count; ++i) {
    if (who[i] != nullptr) who[i]->state = State::ready;
  }
}

// The same function at the same place. __syncwarp may be called from anywhere.
bool meet(const Rendezvous& a, const Rendezvous& b) {
  if (std::strcmp(a.name, b.name) != 0 || a.block != b.block || a.mask != b.mask) return false;
  return std::strcmp(a.name, "__syncwarp") == 0 ||
         (a.site.line() == b.site.line() && a.site.column() == b.site.column() &&
          std::strcmp(a.site.file_name(), b.site.file_name()) == 0);
}

// Lets those lanes go on who are complete.
void release_warp(int warp) {
  Fiber* first = fibers + warp * kWarp;
  const int lanes = lanes_of(warp);
  for (int lane = 0; lane < lanes; ++lane) {
    if (first[lane].state != State::waits || first[lane].at->block) continue;
    Fiber* who[kWarp] = {};
    bool complete = true;
    for (int i = 0; i < kWarp && complete; ++i) {
      if (!(first[lane].at->mask >> i & 1)) continue;
      complete = i < lanes && first[i].state == State::waits && meet(*first[i].at, *first[lane].at);
      who[i] = first + i;
    }
    if (complete) release(who, kWarp);
  }
}

bool release_block() {
  Fiber* who[kMaxThreads];
  for (int i = 0; i < thread_count; ++i) {
    if (fibers[i].state != State::waits || !meet(*fibers[i].at, *fibers[0].at)) return false;
    who[i] = fibers + i;
  }
  if (!fibers[0].at->block) return false;
  release(who, thread_count);
  return true;
}

std::string what_it_does(const Fiber& fiber) {
  if (fiber.state == State::exited) return "has exited";
  const Rendezvous& at = *fiber.at;
  std::string text = std::string("waits in ") + at.name;
  if (!at.block && at.mask != ~0u) text += " of mask " + std::to_string(at.mask);
  return text + " at " + at.site.file_name() + ":" + std::to_string(at.site.line());
}

// Nobody can go on.
std::string divergence() {
  std::string text = "threads diverge:";
  int shown = 0;
  for (int i = 0; i < thread_count;) {
    const std::string what = what_it_does(fibers[i]);
    int end = i + 1;
    while (end < thread_count && what_it_does(fibers[end]) == what) ++end;
    if (++shown > 8) return text + " ...";
    text += (shown > 1 ? "; " : " ") + std::to_string(i);
    if (end > i + 1) text += " to " + std::to_string(end - 1);
    text += " " + what;
    i = end;
  }
  return text;
}

void run_block(size_t shared_bytes) {
  poison(shared_variables.data, shared_variables.bytes);
  poison(dynamic.data, shared_bytes + kFenceBytes);
  for (int i = 0; i < thread_count; ++i) prepare(i);
  while (!block_failed) {
    const int warp = next_warp();
    if (warp < 0) {
      const bool done = std::all_of(fibers, fibers + thread_count,
                                    [](const Fiber& f) { return f.state == State::exited; });
      if (done) break;
      if (!release_block()) fail(divergence());
      continue;
    }
    int order[kWarp];
    const int lanes = lanes_of(warp);
    arrange(order, lanes);
    for (int i = 0; i < lanes && !block_failed; ++i) {
      const int thread = warp * kWarp + order[i];
      if (fibers[thread].state == State::ready) resume(thread);
    }
    if (!block_failed) release_warp(warp);
  }
  for (size_t i = 0; i < kFenceBytes && !block_failed; i += 4) {
    if (std::memcmp(dynamic.data + shared_bytes + i, &kPoison, 4) != 0) {
      fail("a write past the " + std::to_string(shared_bytes) + " bytes of dynamic shared memory");
    }
  }
}

cudaError_t set_error(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

// ---- What kernels call

void fail(const std::string& why) {
  if (!block_failed && failure.empty()) {
    failure = "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
              std::to_string(blockIdx.z) + "): " + why;
  }
  block_failed = true;
  if (current != nullptr) leave();  // never to come back
}

void warp_rendezvous(const char* name, unsigned mask, void* data, Combine combine, Site site) {
  if (!(mask >> (current - fibers) % kWarp & 1)) {
    fail(std::string(name) + " by a lane that is not in its mask");
  }
  const Rendezvous here{name, false, mask, data, combine, site};
  current->at = &here;
  current->state = State::waits;
  leave();
}

void block_rendezvous(const char* name, void* data, Combine combine, Site site) {
  const Rendezvous here{name, true, 0, data, combine, site};
  current->at = &here;
  current->state = State::waits;
  leave();
}

void* dynamic_shared() { return dynamic.data; }

void check_shared(const char* name, const void* data, size_t bytes) {
  if (!dynamic.holds(data, bytes) && !shared_variables.holds(data, bytes)) {
    fail(std::string(name) + " of an address that is not in shared memory");
  }
  if (reinterpret_cast<uintptr_t>(data) % bytes != 0) {
    fail(std::string(name) + " of a misaligned address in shared memory");
  }
}

void copy_later(void* shared, const void* global, int bytes, int size) {
  check_shared("cp.async", shared, size);
  if (bytes < 0 || bytes > size) fail("cp.async of " + std::to_string(bytes) + " bytes");
  if (reinterpret_cast<uintptr_t>(global) % size != 0) {
    fail("cp.async of a misaligned address in global memory");
  }
  poison(shared, size);
  current->copies.push_back({shared, global, bytes, size, current->group});
}

void commit_copies() { ++current->group; }

void wait_for_copies(int pending) {
  auto& copies = current->copies;
  const auto is_due = [&](const Copy& copy) { return copy.group < current->group - pending; };
  const auto end = std::find_if_not(copies.begin(), copies.end(), is_due);
  for (auto copy = copies.begin(); copy != end; ++copy) {
    std::memset(copy->to, 0, copy->size);
    if (copy->bytes > 0) std::memcpy(copy->to, copy->from, copy->bytes);
  }
  copies.erase(copies.begin(), end);
}

// ---- Launch

cudaError_t run(const Launch& launch, const std::function<void()>& kernel) {
  const auto count = [](dim3 d) { return static_cast<uint64_t>(d.x) * d.y * d.z; };
  const uint64_t threads = count(launch.block);
  if (threads == 0 || threads > kMaxThreads || count(launch.grid) == 0 || launch.grid.y > 65535 ||
      launch.grid.z > 65535) {
    return set_error(cudaErrorInvalidConfiguration);
  }
  if (launch.shared_bytes > kMaxSharedBytes) return set_error(cudaErrorInvalidValue);
  launches.push_back(launch);
  gridDim = launch.grid;
  blockDim = launch.block;
  thread_count = static_cast<int>(threads);
  kernel_call = &kernel;
  random_state = device.seed;
  shared_variables = static_shared();
  dynamic = {dynamic_memory(), launch.shared_bytes};
  block_failed = false;
  std::vector<int> blocks(count(launch.grid));
  arrange(blocks.data(), static_cast<int>(blocks.size()));
  for (const int block : blocks) {
    const unsigned b = static_cast<unsigned>(block);
    blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / gridDim.x / gridDim.y};
    run_block(launch.shared_bytes);
    if (block_failed) return set_error(cudaErrorLaunchFailure);
  }
  return cudaSuccess;
}

std::string take_failure() { return std::exchange(failure, {}); }

}  // namespace cuda_on_host

// ---- The runtime

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = cuda_on_host::device.sms; break;
    case cudaDevAttrComputeCapabilityMajor: *value = cuda_on_host::device.capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = cuda_on_host::device.capability % 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(cuda_on_host::kMaxSharedBytes);
      break;
    default: return cuda_on_host::set_error(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(cuda_on_host::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return cuda_on_host::last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "another error";
  }
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
