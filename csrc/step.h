// One step over all groups: the same for the C++ and the Python optimizer.
#pragma once

#include <vector>

#include "plan.h"

namespace erlangen {

// Updates every parameter that has a gradient, creating its state at its first step. Everything a
// user can get wrong is checked, and raised, before the first change.
void step(Plan& plan, const std::vector<StepGroup>& groups);

// How many steps of parameters the fused kernels have taken in this process; for tests.
int64_t kernel_count();

}  // namespace erlangen
