#include "routing/name_patterns.h"

#include <regex>

namespace erlangen {

const std::map<std::string, std::string>& name_patterns() {
  static const std::map<std::string, std::string> patterns = {
      // Tensors that a module holds itself and that are no matrices: biases of two dimensions, and
      // in any number of them gains and tables of numbers.
      {"vectors", R"((^|_)bias(es)?\d*$|_bias_)"},
      {"gains",
       R"(^(weight_g|g|gamma|beta|gain|gains|scale|scales|ls\d?|layer_scale\w*|lambda\w*|alpha\w*)$)"},
      {"tables_of_numbers",
       R"(^(A_log|D|dt_bias|sinks|sink|temperature|tau|logit_scale)"
       R"(|time_(decay|faaaa|first|maa\w*|mix\w*))"
       R"(|relative_position_bias_table|rel_pos_bias|attention_biases|relative_attention_bias)$)"},
      // Tables of positions and other learned tokens, held as a tensor.
      {"positions",
       R"(pos(ition(al)?)?_?emb(ed(ding)?s?)?s?(_?\d+)?$|^pos(itional)?_enc|^pos(ition(s|_bias)?)?$)"
       R"(|(query|latent|mask|register|prompt|learn\w*|special|object))"
       R"(_?(tokens?|quer(y|ies)|embed\w*)$)"
       R"(|^(queries|latents|query_feat|query_embed|register_tokens|embeddings?)$)"},
      // Tables of one number for each head: a bias by distance.
      {"distances", R"(rel(ative)?_|bias|distance)"},
      // Heads by name, with the shape of the table of tokens; those of the second kind are
      // recognised only where the table's name says what it is, too.
      {"heads", R"(lm_head|embed_out|unembed(ding)?|to_logits|lm_out|logits_proj)"},
      {"heads_beside_tokens", R"(output|output_layer|head|logits|decoder)"},
      {"token_tables", R"((tok|token|word)_?emb(ed(ding)?s?)?|embed_tokens|wte|tok_embeddings)"
                       R"(|emb_tokens|vocab_embed\w*)"},
      // Routers by name, and what holds experts.
      {"routers",
       R"((gate|router|wg|gating|moe_gate|switch|router_proj|gate_network|gating_network))"
       R"(|(router|gate|gating)\.(layer|linear|classifier|proj|gate|router|wg|weight|dense))"},
      {"experts", R"(expert)"},
      // Classes.
      {"router_classes", R"((Router|Gate|Gating|Gater)$)"},
      {"mlp_classes", R"(MLP|Mlp|FeedForward|Feedforward|FFN|Ffn|FFW)"},
      {"norm_classes", R"(Norm(\dd)?$)"},
      {"attention_classes", R"((Attention|Attn)(\d*D|\dd)?$)"},
  };
  return patterns;
}

namespace {

const std::regex& compiled(const std::string& what) {
  static const std::map<std::string, std::regex> all = [] {
    std::map<std::string, std::regex> result;
    for (const auto& [name, text] : name_patterns()) result.emplace(name, std::regex(text));
    return result;
  }();
  return all.at(what);
}

}  // namespace

bool is_found(const std::string& what, const std::string& name) {
  return std::regex_search(name, compiled(what));
}

bool is_all(const std::string& what, const std::string& name) {
  return std::regex_match(name, compiled(what));
}

}  // namespace erlangen
