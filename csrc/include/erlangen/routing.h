// Which rule for which parameter of a module.
#pragma once

#include <erlangen/options.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <string>
#include <utility>
#include <vector>

namespace erlangen {

// "embedding", "lm_head", "router", "attention", "mlp_in", "mlp_out", "expert_in", "expert_out",
// "dense", "lora", "other".
const std::vector<std::string>& role_names();

// The options that a role stands for. `adjust_lr_fn` matters for lookup tables only: under
// "original", "spectral_unclamped" and "unit_rms_norm" they are normalised by columns of the
// transpose, because their outputs lie along columns. Raises c10::ValueError for another role or
// `adjust_lr_fn`.
EquivariantOptions role_options(const std::string& role,
                                const std::string& adjust_lr_fn = "match_rms_adamw");

// Options by full parameter name, by glob ('*' and '?') or by role. A name counts more than a glob,
// a glob more than a role, and of two globs the later one.
using Overrides = std::vector<std::pair<std::string, EquivariantOptions>>;

// Parameter groups for all parameters of `module` that require gradients, by the types of its
// submodules (torch::nn) alone:
//   Embedding, EmbeddingBag      embedding
//   Linear, Bilinear             dense
//   Conv1d ... ConvTranspose3d   dense, flattened; a matrix for each group; depthwise: other
//   MultiheadAttention           attention, per head
//   TransformerEncoderLayer, TransformerDecoderLayer   mlp_in and mlp_out for its linear layers
//   RNN, LSTM, GRU (and cells)   dense, per gate
//   every tensor of less than two dimensions (biases, norms): other
// What a type cannot tell (an LM head, a router, the experts of a stack, a fused projection, a
// parameter of the caller's own module) is told by `overrides`, in which `role` brings the role's
// options along. A parameter that several modules share is taken once, under its first name, and
// overrides may call it by any of its names; an Embedding's that is a Linear's too is an embedding.
// A Linear of the shape [V, d] of an Embedding may be an LM head: without an override it has no
// role, unless V = d.
// `adjust_lr_fn`: as in role_options; stands in the groups if it is not the default.
// Raises c10::ValueError that lists every parameter without a role; for an override that matches
// nothing; and for a module without parameters that require gradients.
std::vector<torch::optim::OptimizerParamGroup> param_groups(
    const torch::nn::Module& module, const Overrides& overrides = {},
    const std::string& adjust_lr_fn = "match_rms_adamw");

}  // namespace erlangen
