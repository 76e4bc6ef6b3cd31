// Random bits without state: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers:
// As Easy as 1, 2, 3", SC 2011), and stochastic rounding to bfloat16 with them. A number depends on
// its key and counter alone, not on who asks for it or in which order.

#pragma once

#include <cstdint>
#include <cstring>

#include "types.h"

namespace erlangen::kernels {

// The four words of one counter under one key; replaces the counter by them.
ERLANGEN_INLINE void philox(uint32_t (&counter)[4], uint64_t key) {
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * counter[0];
    const uint64_t product2 = static_cast<uint64_t>(0xCD9E8D57u) * counter[2];
    const uint32_t high0 = static_cast<uint32_t>(product0 >> 32);
    const uint32_t high2 = static_cast<uint32_t>(product2 >> 32);
    counter[0] = high2 ^ counter[1] ^ key0;
    counter[1] = static_cast<uint32_t>(product2);
    counter[2] = high0 ^ counter[3] ^ key1;
    counter[3] = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// The noise of one parameter at one step. Element e takes the low 16 bits of word e mod 4 of
// counter (e / 4, step, tensor).
struct RoundingNoise {
  uint64_t seed;
  uint32_t step;
  uint32_t tensor;
};

ERLANGEN_INLINE void noise_words(const RoundingNoise& noise, uint64_t quad, uint32_t (&words)[4]) {
  words[0] = static_cast<uint32_t>(quad);
  words[1] = static_cast<uint32_t>(quad >> 32);
  words[2] = noise.step;
  words[3] = noise.tensor;
  philox(words, noise.seed);
}

// x to bfloat16, up or down with probability by distance: its lower 16 bits, plus 16 random ones,
// carry or do not. Infinities and NaN stay.
ERLANGEN_INLINE uint16_t stochastic_bfloat16(float x, uint32_t word) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t special = bits >> 16 | (magnitude > 0x7f800000u ? 0x40u : 0u);
  const uint32_t rounded = (bits + (word & 0xffffu)) >> 16;
  return static_cast<uint16_t>(magnitude >= 0x7f800000u ? special : rounded);
}

}  // namespace erlangen::kernels
