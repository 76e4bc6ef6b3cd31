// What the tests of CUDA kernels on the host share.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>
#include <vector>

#include "cuda_on_host.h"

namespace erlangen::testing {

// Runs `launch_it` in several orders; the results that came out.
template <typename Result, typename Launch>
std::set<Result> in_all_orders(Launch launch_it) {
  std::set<Result> results;
  for (int i = 0; i < 6; ++i) {
    cuda_on_host::device.order = i == 0   ? cuda_on_host::Order::forward
                                 : i == 1 ? cuda_on_host::Order::backward
                                          : cuda_on_host::Order::shuffled;
    cuda_on_host::device.seed = i;
    results.insert(launch_it());
  }
  return results;
}

inline void expect_failure(cudaError_t error, const std::vector<std::string>& words) {
  EXPECT_EQ(error, cudaErrorLaunchFailure);
  const std::string why = cuda_on_host::take_failure();
  for (const std::string& word : words) {
    EXPECT_NE(why.find(word), std::string::npos) << "no \"" << word << "\" in: " << why;
  }
}

template <typename T>
std::vector<T> random_matrix(int count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values(count);
  for (T& x : values) x = T(normal(generator));
  return values;
}

}  // namespace erlangen::testing
