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

// Options by full parameter name, by glob (as Python's fnmatch: '*', '?', "[abc]", "[!abc]") or by
// role. A name counts more than a glob, a glob more than a role, and of two globs the later one.
// `role` gives another role: its rule and its options, and of the layout found before only how the
// tensor is stored (flattened, transposed).
using Overrides = std::vector<std::pair<std::string, EquivariantOptions>>;

// Parameter groups for all parameters of `module` that require gradients, one for each role and
// layout, as in Python. Every module is taken. How far a role can be relied on is its grade, in
// `evidence`, with the reason in `why`; both lists are parallel to `param_names`:
//   "declared"     torch::nn says so:
//       Embedding, EmbeddingBag      embedding
//       Bilinear, Conv1d ... ConvTranspose3d   dense, flattened; a matrix for each group; a filter
//                                    for each channel (depthwise): other
//       MultiheadAttention           attention, per head
//       RNN, LSTM, GRU (and cells)   dense, per gate
//       every tensor of one dimension, or of more that is a vector all the same (gains [C, 1, 1],
//       tokens [1, 1, d]): other
//   "recognised"   names of a convention (wq, wk, wv, wo; w1, w2, w3; c_attn, c_proj; a gate with
//       as many rows as there are experts beside it; lm_head in the shape of the largest Embedding;
//       ...) and shapes that obey its equations. A
//       module of one's own states no head counts here: its projections are attention, each one
//       matrix, unless an override gives the layout. A router is centered where a Softmax stands
//       beside it, since no other code can be read here.
//   "assumed"      only the type of layer is known: a Linear, and a convolution of single points,
//       is dense, a tensor that a module of one's own holds is other, and the model's last linear
//       map, if it has the shape [V, d] of the largest Embedding and V is not d, an lm_head, not
//       centered.
// One warning (TORCH_WARN) says what is assumed. What is known otherwise is told by `overrides`. A
// parameter that several modules share is taken once, under its first name, and overrides may call
// it by any of its names (the first 16 of them); an Embedding's that is a Linear's too is an
// embedding.
// `adjust_lr_fn`: as in role_options; stands in the groups if it is not the default.
// `strict`: an error instead of the warning.
// Raises c10::ValueError for an override that matches nothing or gives a role that does not exist;
// for a module without parameters that require gradients; and with `strict` where a role is only
// assumed: it lists all of them.
std::vector<torch::optim::OptimizerParamGroup> param_groups(
    const torch::nn::Module& module, const Overrides& overrides = {},
    const std::string& adjust_lr_fn = "match_rms_adamw", bool strict = false);

}  // namespace erlangen
