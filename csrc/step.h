// One step over all groups: the same for the C++ and the Python optimizer.
#pragma once

#include <vector>

#include "plan.h"

namespace erlangen {

// Updates every parameter that has a gradient, creating its state at its first step. Everything a
// user can get wrong is checked, and raised, before the first change.
void step(Plan& plan, const std::vector<StepGroup>& groups);

// Counts a step of one parameter and returns its number, from 1. On the CPU, so that reading it
// waits for nothing.
int64_t next_step(EquivariantParamState& state);

// How many steps of parameters the fused kernels have taken in this process; for tests.
int64_t kernel_count();

// Whether fused kernels are used where they can be (they are), or the reference operations
// everywhere; for tests.
void use_kernels(bool use);

}  // namespace erlangen
