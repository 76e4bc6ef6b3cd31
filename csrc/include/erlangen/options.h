// The options of a parameter group: names, defaults and meanings, for C++ and Python alike.
//
// Sources: names follow torch.optim.Muon and torch.optim.AdamW; the rules are those of
// arXiv 2605.18106.
#pragma once

#include <torch/optim/optimizer.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace c10 {
struct IValue;
}

namespace erlangen {

// One step of a layout: how a tensor [..., m, n] becomes a batch of logical matrices. `dim` is -2
// (rows) or -1 (columns) of the matrices as the steps before have left them.
struct LayoutStep {
  std::string verb;            // "transpose", "sections", "heads", "pairs" or "flatten"
  std::vector<int64_t> sizes;  // sections: the size of each part; heads: {number of heads}
  std::string order;           // pairs: "concatenated" or "interleaved"; flatten: "" or "kernels"
  int64_t dim = -2;

  // Swaps rows and columns: for weights stored as [in, out], and for column-aware rules.
  static LayoutStep transpose();
  // Unequal parts along `dim`, each a matrix of its own.
  static LayoutStep sections(std::vector<int64_t> sizes, int64_t dim);
  // `n` equal parts along `dim`, which become a batch.
  static LayoutStep heads(int64_t n, int64_t dim);
  // `dim` holds the gate and up slices of r SwiGLU units, 2r in all, "concatenated" (all gates,
  // then all ups) or "interleaved"; both slices of a unit become one row.
  static LayoutStep pairs(std::string order, int64_t dim);
  // Keeps dimension 0 of the parameter and joins the rest: convolution kernels.
  static LayoutStep flatten();
  // The same for tensors of four and five dimensions, which convolution kernels are as a rule;
  // others stay as they are.
  static LayoutStep flatten_kernels();

  bool operator==(const LayoutStep&) const = default;
};

using Layout = std::vector<LayoutStep>;

// Coefficients (a, b, c) of the polynomials a·x + b·x³ + c·x⁵ of a Newton-Schulz iteration, one
// triple a step. Either a named set ("polar_express", "jordan", "you", "deepseek_v4", "cubic") or
// the triples themselves, of which the last is repeated when there are more steps.
struct NsCoefficients {
  std::string name = "polar_express";          // empty when `triples` is given
  std::vector<std::array<double, 3>> triples;  // empty when `name` is given

  NsCoefficients() = default;
  /* implicit */ NsCoefficients(const char* set_name) : name(set_name) {}
  /* implicit */ NsCoefficients(std::string set_name) : name(std::move(set_name)) {}
  /* implicit */ NsCoefficients(std::vector<std::array<double, 3>> steps)
      : name(), triples(std::move(steps)) {}

  bool operator==(const NsCoefficients&) const = default;
};

// A value, and whether somebody chose it: values nobody chose give way to the optimizer's defaults.
template <typename T>
struct Setting {
  T value;
  bool is_set = false;
};

#define ERLANGEN_OPTION(T, name, ...)                      \
 public:                                                   \
  EquivariantOptions& name(T new_value) {                  \
    name##_ = {std::move(new_value), true};                \
    return *this;                                          \
  }                                                        \
  const T& name() const noexcept { return name##_.value; } \
                                                           \
 private:                                                  \
  Setting<T> name##_ { __VA_ARGS__ }

struct EquivariantOptions : public torch::optim::OptimizerCloneableOptions<EquivariantOptions> {
  using Betas = std::tuple<double, double>;
  using OptionalBool = std::optional<bool>;
  using OptionalInt = std::optional<int64_t>;
  using Strings = std::vector<std::string>;

  EquivariantOptions() = default;
  /* implicit */ EquivariantOptions(double lr) { this->lr(lr); }

  // Learning rate, ≥ 0.
  ERLANGEN_OPTION(double, lr, 1e-3);
  // Multiplies the update of this group but not its decay, so that a scheduler that sets one lr
  // for all groups keeps their ratios. ≥ 0.
  ERLANGEN_OPTION(double, update_scale, 1.0);
  // Decoupled: p ← (1 − lr·weight_decay)·p, from the parameter before the step. ≥ 0.
  ERLANGEN_OPTION(double, weight_decay, 1e-2);
  // "decoupled", or "cautious": decays only the entries where parameter · update > 0.
  ERLANGEN_OPTION(std::string, decay, "decoupled");
  // "spectral", "right_spectral", "left_spectral", "row_norm", "column_norm", "hybrid", "adamw".
  // There is no default: a group without a rule is an error.
  ERLANGEN_OPTION(std::string, rule, "");
  // hybrid only: "row_then_polar" or "polar_then_row".
  ERLANGEN_OPTION(std::string, order, "row_then_polar");
  // Projects the mean over rows out of the rule's input and out of its result.
  ERLANGEN_OPTION(bool, center, false);
  // How the tensor is a batch of logical matrices; empty: the last two dimensions are the matrix.
  ERLANGEN_OPTION(Layout, layout, {});
  // "all", or "gradient": rows of the parameter whose gradient is zero in this step keep their
  // value (lookup tables); their momentum decays.
  ERLANGEN_OPTION(std::string, support, "all");
  // Momentum β of the zero-start average m ← β·m + (1 − β)·g, in [0, 1).
  ERLANGEN_OPTION(double, momentum, 0.95);
  // Takes the direction from lerp(g, m, β) instead of m. nullopt: true for spectral, else false.
  ERLANGEN_OPTION(OptionalBool, nesterov, std::nullopt);
  // "momentum_first", or "polar_first": average the directions instead of the gradients.
  ERLANGEN_OPTION(std::string, momentum_order, "momentum_first");
  // Exponent of the nuclear norm that multiplies a polar direction.
  ERLANGEN_OPTION(double, alpha, 0.0);
  // Scale by the logical matrix's shape m×n:
  //                         polar rules      row_norm, polar_then_row  column_norm
  //   "match_rms_adamw"     0.2·√max(m, n)   0.2·√n                    0.2·√m
  //   "original"            √max(1, m/n)     1                         1           (Muon)
  //   "spectral_unclamped"  √(m/n)           1                         1           (Bernstein)
  //   "unit_rms_norm"       √(m/n)           1/√n                      √m          (Scion)
  //   "none"                1                1                         1
  ERLANGEN_OPTION(std::string, adjust_lr_fn, "match_rms_adamw");
  // The polar iteration: its polynomials, how many steps of them (nullopt: the set's own length),
  // "auto" (the cheaper of the next two, in bfloat16 the first), "standard", "gram" or "exact" (a
  // decomposition in float64, in which singular values below 16 roundings of the input's type count
  // as zero; of float64 through a Gram matrix, as the one-sided rules go, those below the root of
  // its rounding), and the type of its products: "float32", "bfloat16", "float16" or "auto", which
  // is float64 for float64 parameters; float16 on CUDA; and on CPUs with instructions for it
  // bfloat16, but float32 with ns_method "gram", and with "auto" for one-sided rules and, without
  // AMX, for matrices of 3:1 and longer, whose Gram form is faster then. Other CPUs multiply in
  // float32.
  ERLANGEN_OPTION(NsCoefficients, ns_coefficients, {});
  ERLANGEN_OPTION(OptionalInt, ns_steps, std::nullopt);
  ERLANGEN_OPTION(std::string, ns_method, "auto");
  ERLANGEN_OPTION(std::string, ns_dtype, "auto");
  // Least Frobenius norm that the polar iteration divides by. 0 but for Muon, whose `eps` it is:
  // any other value makes small gradients count less.
  ERLANGEN_OPTION(double, ns_eps, 0.0);
  // adamw only: the decay rates of its two moments, each in [0, 1), and what is added to the root
  // of the second.
  ERLANGEN_OPTION(Betas, betas, {0.9, 0.95});
  ERLANGEN_OPTION(double, eps, 1e-8);
  // Type of momentum and moments: "auto" (float64 for float64 parameters, else float32) or
  // "bfloat16".
  ERLANGEN_OPTION(std::string, state_dtype, "auto");
  // Rounds bfloat16 parameters up or down with probability by distance; noise drawn from `seed`.
  ERLANGEN_OPTION(bool, stochastic_rounding, false);
  ERLANGEN_OPTION(int64_t, seed, 0);
  // Ascends instead of descending.
  ERLANGEN_OPTION(bool, maximize, false);
  // Steps can be captured in a CUDA graph, as in torch: parameters are on CUDA, the first step,
  // which creates the state, is taken before the capture, and what a replay is to see changed is a
  // tensor on the device (Equivariant::set_lr_tensor; in Python lr and weight_decay themselves).
  ERLANGEN_OPTION(bool, capturable, false);
  // What the parameters are, and their names; the optimizer does not look at them, explain() does.
  ERLANGEN_OPTION(std::string, role, "");
  ERLANGEN_OPTION(Strings, param_names, {});
  // How far each parameter's role can be relied on ("declared", "recognised", "assumed"), and the
  // reason in a phrase; parallel to param_names.
  ERLANGEN_OPTION(Strings, evidence, {});
  ERLANGEN_OPTION(Strings, why, {});

 public:
  // Takes every value that was not chosen here from `defaults`.
  void fill_from(const EquivariantOptions& defaults);
  // Sets one option by name from a plain value (bool, int, float, str, None, list, dict).
  // Raises c10::ValueError for an unknown name and c10::TypeError for a value of another type; the
  // messages begin with `where`.
  void set(const std::string& name, const c10::IValue& value, const std::string& where = "");
  // One option's value as a plain value.
  c10::IValue get(const std::string& name) const;
  // Whether the option was chosen, by its setter or by set().
  bool is_set(const std::string& name) const;
  // The names of all options, in the order above.
  static std::vector<std::string> names();

  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override;
  void set_lr(double lr) override;
  bool operator==(const EquivariantOptions& other) const;

 private:
  // Calls visitor(name, setting) for each option.
  template <typename Self, typename Visitor>
  static void visit(Self& self, Visitor&& visitor);
  // Calls visitor(setting) for the option of this name; raises c10::ValueError if there is none.
  template <typename Self, typename Visitor>
  static void visit_one(Self& self, const std::string& name, Visitor&& visitor);
  // Calls visitor(setting of a, setting of b) for each option.
  template <typename A, typename B, typename Visitor>
  static void visit_both(A& a, B& b, Visitor&& visitor);
};

#undef ERLANGEN_OPTION

}  // namespace erlangen
