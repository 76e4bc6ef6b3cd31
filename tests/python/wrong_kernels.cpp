// Preloaded by test_self_check.py, this stands between liberlangen and some of its own functions:
// the kernels for CPUs prove themselves as those for GPUs do, and the one that WRONG_KERNEL names
// forgets the tail of its work. No hook in the library knows of it.

#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include "kernels/cpu/centered_row_norm.h"
#include "kernels/cpu/column_norm.h"
#include "kernels/cpu/polar_update.h"
#include "kernels/cpu/row_norm.h"

// As torch declares them, whose headers take long to read.
namespace c10 {
enum class DeviceType : int8_t;
struct Device {
  DeviceType type;
  int8_t index;
};
}  // namespace c10

namespace {

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value ? value : "";
}

bool is_wrong(const char* kernel) {
  static const std::string wrong = environment("WRONG_KERNEL");
  return wrong == kernel;
}

// The library's own. Python loads it in a scope where RTLD_NEXT would not find it.
template <typename Function>
Function* next(Function* own) {
  Dl_info info;
  dladdr(reinterpret_cast<void*>(own), &info);
  void* const library = dlopen("liberlangen.so", RTLD_LAZY | RTLD_NOLOAD);
  return reinterpret_cast<Function*>(dlsym(library, info.dli_sname));
}

}  // namespace

namespace erlangen {

bool proves_kernels(c10::DeviceType) { return true; }

// A step asks first, for itself; later ones come from checks.
bool is_capturing(c10::Device) {
  static const bool capturing = !environment("CAPTURING").empty();
  static int calls = 0;
  return capturing && ++calls > 1;
}

namespace kernels::cpu {

void row_norm_step(const RowNormTensor& tensor, const RowNormOptions& options, int64_t begin,
                   int64_t end) {
  static const auto right = next(&row_norm_step);
  right(tensor, options, begin, is_wrong("row_norm") ? end - 1 : end);
}

void centered_row_norm_update(const RowNormTensor& tensor, const RowNormOptions& options,
                              void* scratch, int64_t begin, int64_t end) {
  static const auto right = next(&centered_row_norm_update);
  right(tensor, options, scratch, begin, is_wrong("centered_row_norm") ? end - 1 : end);
}

void column_norm_update(const ColumnNormTensor& tensor, const ColumnNormOptions& options,
                        const ColumnNormBlock& block, const void* scratch) {
  static const auto right = next(&column_norm_update);
  ColumnNormBlock done = block;
  if (is_wrong("column_norm")) --done.row_end;
  right(tensor, options, done, scratch);
}

void polar_update_parameter(const PolarTensor& tensor, const PolarUpdateOptions& options,
                            const PolarBlock& block) {
  static const auto right = next(&polar_update_parameter);
  PolarBlock done = block;
  if (is_wrong("polar_update")) --done.row_end;
  right(tensor, options, done);
}

}  // namespace kernels::cpu
}  // namespace erlangen
