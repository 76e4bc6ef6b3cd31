// One step over all groups: the same for the C++ and the Python optimizer.
#pragma once

#include <vector>

#include "plan.h"

namespace erlangen {

// Updates every parameter that has a gradient, creating its state at its first step. Everything a
// user can get wrong is checked, and raised, before the first change.
// `groups` are the caller's but for their scalars, which are placed here.
void step(Plan& plan, std::vector<StepGroup>& groups, StepInputs inputs = {});

// What step() does after its checks, with every scalar left on its device: found_inf too, which
// step() reads where that is the CPU. Apart so that tests on the CPU can follow what a GPU does.
void take_step(const Plan& plan, std::vector<StepGroup>& groups, const StepInputs& inputs);

// A bucket's step by the reference operations.
void reference_step(const Bucket& bucket, const std::vector<StepGroup>& groups);

// How many steps of parameters the fused kernels have taken in this process; for tests.
int64_t kernel_count();

// Whether fused steps are used where they can be (they are), or the reference operations; for
// tests.
void use_kernels(bool use);

}  // namespace erlangen
