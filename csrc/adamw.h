// The step of the parameters that no symmetry claims: AdamW (Loshchilov & Hutter), as
// torch.optim.AdamW computes it.
#pragma once

#include <vector>

#include "plan.h"

namespace erlangen {

// Steps all of `params`, whose state exists. torch's own fused kernel does what it can, in one call
// for all parameters that agree in device, type and hyperparameters; the reference does the rest:
// cautious decay, row support, stochastic rounding, weight_decay in a tensor, state of another type
// than the parameter's.
void step_adamw(const std::vector<ParamIndex>& params, const std::vector<StepGroup>& groups);

}  // namespace erlangen
