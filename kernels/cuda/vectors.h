// How wide memory access is, for host and device.

#pragma once

namespace erlangen::kernels::cuda {

constexpr int kVectorBytes = 16;

// Columns that one 16-byte vector of the narrower of the two types holds.
constexpr int pack_width(int param_bytes, int momentum_bytes) {
  return kVectorBytes / (param_bytes < momentum_bytes ? param_bytes : momentum_bytes);
}

}  // namespace erlangen::kernels::cuda
