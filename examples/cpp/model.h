// A small language model as today's large ones are built: grouped-query attention with rotary
// positions, SwiGLU, a mixture of experts in every second layer, RMSNorm, an untied LM head.
//
// Nothing in it knows of the optimizer, except for `overrides` at the end.
#pragma once

#include <erlangen/erlangen.h>
#include <torch/torch.h>

#include <cstdint>
#include <optional>

struct ModelOptions {
  int64_t vocab_size = 256;
  int64_t hidden_size = 128;
  int64_t num_hidden_layers = 4;
  int64_t num_attention_heads = 4;
  int64_t num_key_value_heads = 2;
  int64_t intermediate_size = 384;
  int64_t num_experts = 8;
  int64_t num_experts_per_tok = 2;
  int64_t moe_intermediate_size = 128;
  double rope_theta = 10000.0;
  double initializer_range = 0.02;

  int64_t head_dim() const { return hidden_size / num_attention_heads; }
};

inline torch::nn::Linear linear(int64_t in, int64_t out) {
  return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
}

struct RMSNormImpl : torch::nn::Module {
  torch::Tensor weight;

  explicit RMSNormImpl(int64_t size) { weight = register_parameter("weight", torch::ones(size)); }

  torch::Tensor forward(const torch::Tensor& x) {
    return torch::rms_norm(x, weight.sizes(), weight, /*eps=*/1e-6);
  }
};
TORCH_MODULE(RMSNorm);

// Cosines and sines of the rotary position embedding, each [seq_len, head_dim / 2].
struct Rotation {
  torch::Tensor cos, sin;

  Rotation(int64_t seq_len, const ModelOptions& o, const torch::TensorOptions& options) {
    const int64_t pairs = o.head_dim() / 2;
    const auto exponents = torch::arange(pairs, options) / -static_cast<double>(pairs);
    const auto angles =
        torch::outer(torch::arange(seq_len, options), at::pow(o.rope_theta, exponents));
    cos = angles.cos();
    sin = angles.sin();
  }

  // Turns the plane of coordinates i and i + head_dim / 2 by position · theta^(-2i / head_dim).
  torch::Tensor operator()(const torch::Tensor& x) const {
    const auto halves = x.chunk(2, -1);
    return torch::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
  }
};

struct AttentionImpl : torch::nn::Module {
  int64_t head_dim;
  torch::nn::Linear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr}, o_proj{nullptr};

  explicit AttentionImpl(const ModelOptions& o) : head_dim(o.head_dim()) {
    const int64_t d = o.hidden_size;
    q_proj = register_module("q_proj", linear(d, o.num_attention_heads * head_dim));
    k_proj = register_module("k_proj", linear(d, o.num_key_value_heads * head_dim));
    v_proj = register_module("v_proj", linear(d, o.num_key_value_heads * head_dim));
    o_proj = register_module("o_proj", linear(o.num_attention_heads * head_dim, d));
  }

  torch::Tensor forward(const torch::Tensor& x, const Rotation& rotate) {
    // [batch, seq_len, heads · head_dim] -> [batch, heads, seq_len, head_dim]
    const auto split = [&](const torch::Tensor& t) {
      return t.unflatten(-1, {-1, head_dim}).transpose(1, 2);
    };
    const auto mixed = torch::scaled_dot_product_attention(
        rotate(split(q_proj(x))), rotate(split(k_proj(x))), split(v_proj(x)), /*attn_mask=*/{},
        /*dropout_p=*/0.0, /*is_causal=*/true, /*scale=*/std::nullopt, /*enable_gqa=*/true);
    return o_proj(mixed.transpose(1, 2).flatten(-2));
  }
};
TORCH_MODULE(Attention);

struct MLPImpl : torch::nn::Module {
  torch::nn::Linear gate_proj{nullptr}, up_proj{nullptr}, down_proj{nullptr};

  explicit MLPImpl(const ModelOptions& o) {
    gate_proj = register_module("gate_proj", linear(o.hidden_size, o.intermediate_size));
    up_proj = register_module("up_proj", linear(o.hidden_size, o.intermediate_size));
    down_proj = register_module("down_proj", linear(o.intermediate_size, o.hidden_size));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    return down_proj(torch::silu(gate_proj(x)) * up_proj(x));
  }
};
TORCH_MODULE(MLP);

// Each token goes through the `top_k` experts that the router likes best. The experts' weights are
// stacks with one matrix an expert.
struct MoEImpl : torch::nn::Module {
  int64_t num_experts, top_k;
  torch::nn::Linear router{nullptr};
  torch::Tensor gate_up_proj;  // [experts, 2 · moe_intermediate_size, hidden_size], gates first
  torch::Tensor down_proj;     // [experts, hidden_size, moe_intermediate_size]

  explicit MoEImpl(const ModelOptions& o)
      : num_experts(o.num_experts), top_k(o.num_experts_per_tok) {
    const int64_t d = o.hidden_size, r = o.moe_intermediate_size;
    router = register_module("router", linear(d, num_experts));
    gate_up_proj = register_parameter("gate_up_proj", torch::empty({num_experts, 2 * r, d}));
    down_proj = register_parameter("down_proj", torch::empty({num_experts, d, r}));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    const auto tokens = x.flatten(0, 1);
    auto [weights, chosen] = torch::softmax(router(tokens), -1).topk(top_k, -1);
    weights = weights / weights.sum(-1, /*keepdim=*/true);

    const auto gate_up = gate_up_proj.unbind(), down = down_proj.unbind();
    auto output = torch::zeros_like(tokens);
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      // Which tokens chose this expert, and whether as their first choice, second, ...
      const auto hits = (chosen == expert).nonzero().unbind(1);
      const auto& token = hits[0];
      const auto& choice = hits[1];
      const auto both = torch::linear(tokens.index_select(0, token), gate_up[expert]).chunk(2, -1);
      const auto result = torch::linear(torch::silu(both[0]) * both[1], down[expert]);
      const auto weight = weights.index({token, choice}).unsqueeze(-1);
      output = output.index_add(0, token, weight * result);
    }
    return output.view_as(x);
  }
};
TORCH_MODULE(MoE);

struct DecoderLayerImpl : torch::nn::Module {
  RMSNorm attention_norm{nullptr}, mlp_norm{nullptr};
  Attention attention{nullptr};
  MLP mlp{nullptr};  // one of these two
  MoE moe{nullptr};

  DecoderLayerImpl(const ModelOptions& o, bool mixture) {
    attention_norm = register_module("attention_norm", RMSNorm(o.hidden_size));
    attention = register_module("attention", Attention(o));
    mlp_norm = register_module("mlp_norm", RMSNorm(o.hidden_size));
    if (mixture) {
      moe = register_module("moe", MoE(o));
    } else {
      mlp = register_module("mlp", MLP(o));
    }
  }

  torch::Tensor forward(torch::Tensor x, const Rotation& rotate) {
    x = x + attention(attention_norm(x), rotate);
    const auto normed = mlp_norm(x);
    return x + (moe ? moe(normed) : mlp(normed));
  }
};
TORCH_MODULE(DecoderLayer);

struct LanguageModelImpl : torch::nn::Module {
  ModelOptions options;
  torch::nn::Embedding embed_tokens{nullptr};
  torch::nn::ModuleList layers;
  RMSNorm norm{nullptr};
  torch::nn::Linear lm_head{nullptr};

  explicit LanguageModelImpl(const ModelOptions& o) : options(o) {
    embed_tokens =
        register_module("embed_tokens", torch::nn::Embedding(o.vocab_size, o.hidden_size));
    register_module("layers", layers);
    for (int64_t i = 0; i < o.num_hidden_layers; ++i) {
      layers->push_back(DecoderLayer(o, /*mixture=*/i % 2 == 1));
    }
    norm = register_module("norm", RMSNorm(o.hidden_size));
    lm_head = register_module("lm_head", linear(o.hidden_size, o.vocab_size));

    const torch::NoGradGuard no_grad;
    for (auto& parameter : parameters()) {
      if (parameter.dim() > 1) parameter.normal_(0.0, o.initializer_range);
    }
  }

  // Logits of the next token at each position, [batch, seq_len, vocab_size].
  torch::Tensor forward(const torch::Tensor& input_ids) {
    auto x = embed_tokens(input_ids);
    const Rotation rotate(input_ids.size(1), options, x.options());
    for (const auto& layer : *layers) x = layer->as<DecoderLayer>()->forward(x, rotate);
    return lm_head(norm(x));
  }
};
TORCH_MODULE(LanguageModel);

// What the types of C++ modules cannot tell: all projections are Linear, and the stacks of experts
// are bare parameters. `role` brings the rule along, the layout says which parts of a weight have a
// symmetry of their own: heads of attention, gates and ups.
inline erlangen::Overrides overrides(const ModelOptions& o) {
  using erlangen::EquivariantOptions;
  using erlangen::LayoutStep;
  const auto role = [](const char* name) { return EquivariantOptions().role(name); };
  const auto rows = [](int64_t n) { return erlangen::Layout{LayoutStep::heads(n, -2)}; };
  const auto columns = [](int64_t n) { return erlangen::Layout{LayoutStep::heads(n, -1)}; };
  erlangen::Overrides result = {
      {"lm_head.weight", role("lm_head")},
      {"*.q_proj.weight", role("attention").layout(rows(o.num_attention_heads))},
      {"*.k_proj.weight", role("attention").layout(rows(o.num_key_value_heads))},
      {"*.v_proj.weight", role("attention").layout(rows(o.num_key_value_heads))},
      {"*.o_proj.weight", role("attention").layout(columns(o.num_attention_heads))},
      {"*.mlp.gate_proj.weight", role("mlp_in")},
      {"*.mlp.up_proj.weight", role("mlp_in")},
      {"*.mlp.down_proj.weight", role("mlp_out")},
  };
  if (o.num_hidden_layers > 1) {  // an override that matches nothing is an error
    result.emplace_back("*.router.weight", role("router"));
    result.emplace_back("*.moe.gate_up_proj", role("expert_in").layout(rows(2)));
    result.emplace_back("*.moe.down_proj", role("expert_out"));
  }
  return result;
}
