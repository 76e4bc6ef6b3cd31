#include "column_norm_kernel.h"
#include "polar_kernel.h"
#include "row_norm_kernel.h"
#include "self_check_cases.h"
#include "step.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <cmath>
#include <deque>
#include <limits>

namespace erlangen {

namespace {

// A parameter of a case, as it lies in memory.
struct Shape {
  std::vector<int64_t> sizes;
  int64_t unit;  // elements of what is divided by one length: a row, a column, a matrix
  Layout layout = {};
};

// The sizes at which a kernel goes about its work in another way, and some with an odd end: rows
// that a warp, and 128 to 512 threads, hold in registers, or take in two passes; chunks and tiles
// of columns; tiles of 64 by 64.
std::vector<Shape> shapes_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::row_norm:
      return {{{5, 37}, 37},
              {{300, 40}, 40},
              {{4, 48}, 96, {LayoutStep::pairs("concatenated", -2)}},
              {{2, 1000}, 1000},
              {{3, 2001}, 2001},
              {{2, 3000}, 3000},
              {{1, 7000}, 7000},
              {{1, 12000}, 12000},
              {{1, 20000}, 20000},
              {{1, 40000}, 40000}};
    case Kernel::centered_row_norm:
      return {{{5, 37}, 37},    {{140, 40}, 40},   {{2, 9, 136}, 136},
              {{70, 600}, 600}, {{9, 2001}, 2001}, {{3, 9000}, 9000}};
    case Kernel::column_norm:
      return {{{37, 5}, 37},
              {{70, 40}, 70},
              {{200, 300}, 200},
              {{2, 130, 129}, 130},
              {{20, 36},
               40,
               {LayoutStep::transpose(), LayoutStep::pairs("concatenated", -2),
                LayoutStep::transpose()}},
              {{1100, 24}, 1100}};
    default:
      return {{{5, 37}, 5 * 37},
              {{70, 130}, 70 * 130},
              {{130, 70}, 70 * 130},
              {{2, 66, 40}, 66 * 40},
              {{24, 80}, 6 * 80, {LayoutStep::heads(4, -2)}}};
  }
}

// What the parameters of a case share.
struct Variant {
  const char* name;
  size_t shapes = 100;      // the first so many
  bool everything = false;  // every option, every number in a tensor on the device
  bool overflow = false;    // gradients have overflowed: nothing may change
  bool rounds = false;      // stochastically; parameters decay by numbers that nothing rounds
  bool center = false;
};

bool is_polar(const KernelUse& use) { return use.kernel == Kernel::polar_update; }

at::ScalarType compute_dtype(const KernelUse& use) {
  return use.dtypes[0] == at::kDouble ? at::kDouble : at::kFloat;
}

std::vector<Variant> variants_of(const KernelUse& use) {
  const bool center = use.kernel == Kernel::centered_row_norm;
  std::vector<Variant> result = {{.name = ""},
                                 {.name = "everything on, ", .shapes = 3, .everything = true},
                                 {.name = "overflow, ", .shapes = 2, .overflow = true}};
  for (Variant& variant : result) variant.center = center;
  if (use.dtypes[0] == at::kBFloat16 && use.kernel != Kernel::column_norm) {
    result.push_back(
        {.name = "stochastic rounding, ", .shapes = 2, .rounds = true, .center = center});
  }
  // Other operations than the iteration, between the kernels' halves, take x as it is.
  if (is_polar(use) && use.dtypes[2] == compute_dtype(use)) {
    result.push_back({.name = "centered, ", .shapes = 3, .center = true});
  }
  return result;
}

// Groups of one parameter each, and what they point to.
struct Trial {
  std::vector<StepGroup> groups;
  std::deque<EquivariantParamState> states;
  StepInputs inputs;
};

// Of 32 bits that seem random.
uint32_t hash(uint64_t x) {
  x = (x + 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 29)) * 0x94D049BB133111EB;
  return static_cast<uint32_t>(x >> 32);
}

// 1/2 to 3/2 in steps of 1/128, which every type holds.
double magnitude(uint64_t seed, int64_t i) {
  return 0.5 + static_cast<double>(hash(seed << 40 | i) % 128) / 128;
}
double sign(uint64_t seed, int64_t i) { return hash(~seed << 40 | i) % 2 ? 1 : -1; }

const char* rule_of(Kernel kernel) {
  return kernel == Kernel::column_norm    ? "column_norm"
         : kernel == Kernel::polar_update ? "spectral"
                                          : "row_norm";
}

std::string product_name(at::ScalarType dtype) {
  return dtype == at::kHalf       ? "float16"
         : dtype == at::kBFloat16 ? "bfloat16"
         : dtype == at::kFloat    ? "float32"
                                  : "auto";
}

Trial trial_of(const KernelUse& use, const Variant& variant, at::Device device) {
  Trial trial;
  const std::vector<Shape> shapes = shapes_of(use.kernel);
  const auto scalar = [&](double value) {
    return at::full({}, value, at::TensorOptions(device).dtype(at::kFloat));
  };
  if (variant.everything) trial.inputs.grad_scale = scalar(2);
  if (variant.everything || variant.overflow) trial.inputs.found_inf = scalar(variant.overflow);
  for (size_t s = 0; s < std::min(shapes.size(), variant.shapes); ++s) {
    const Shape& shape = shapes[s];
    // Lengths of updates by which their elements are about as large as the parameter's.
    const double length = variant.rounds ? 1 : std::sqrt(static_cast<double>(shape.unit));
    const double decay = variant.rounds ? 0.25 + 0x1p-12 : 0.25 / length;
    EquivariantOptions options(length);
    options.rule(rule_of(use.kernel)).weight_decay(decay).adjust_lr_fn("none").momentum(0.75);
    options.nesterov(s % 2 == 1).center(variant.center).layout(shape.layout);
    options.state_dtype(use.dtypes[1] == at::kBFloat16 ? "bfloat16" : "auto");
    if (is_polar(use)) options.ns_dtype(product_name(use.dtypes[2]));
    if (variant.rounds) options.stochastic_rounding(true).seed(7).update_scale(0);
    StepGroup group;
    if (variant.everything) {
      options.maximize(true);
      // Centered, an element may be too near to zero for its sign to be sure.
      if (!variant.center) options.decay("cautious");
      if (use.kernel == Kernel::row_norm && shape.layout.empty()) options.support("gradient");
      group.lr = scalar(length);
      group.weight_decay = scalar(decay);
    }
    // Momentum and gradient have one sign, so that their sum has the digits of its parts. The last
    // element of each unit is about as long as the rest of it: to lose it is no small error.
    const bool by_columns = use.kernel == Kernel::column_norm;
    const int64_t numel = c10::multiply_integers(shape.sizes), cols = shape.sizes.back();
    const auto tail = [&](int64_t i) {
      const bool last = is_polar(use) ? i == numel - 1
                        : by_columns  ? i >= numel - cols
                                      : i % cols == cols - 1;
      return last ? std::round(length) : 1.0;
    };
    const auto tensor = [&](at::ScalarType dtype, auto&& f) {
      return numbers(shape.sizes, f).to(at::TensorOptions(device).dtype(dtype));
    };
    at::Tensor param = tensor(
        use.dtypes[0], [&](int64_t i) { return sign(10 * s, i) * magnitude(10 * s + 1, i); });
    const double ascends = variant.everything ? -1 : 1;
    param.mutable_grad() = tensor(use.dtypes[0], [&](int64_t i) {
      if (variant.everything && i < cols) return 0.0;
      return ascends * sign(10 * s + 2, i) * magnitude(10 * s + 3, i) * tail(i);
    });
    EquivariantParamState& state = trial.states.emplace_back();
    state.momentum_buffer(tensor(use.dtypes[1], [&](int64_t i) {
      return sign(10 * s + 2, i) * magnitude(10 * s + 4, i) * tail(i);
    }));
    if (variant.rounds) state.step(scalar(3));
    group.options = std::move(options);
    group.params = {std::move(param)};
    group.states = {&state};
    trial.groups.push_back(std::move(group));
  }
  return trial;
}

// The parameters, then the momenta.
std::vector<at::Tensor> tensors_of(const Trial& trial) {
  std::vector<at::Tensor> result;
  for (const StepGroup& group : trial.groups) result.push_back(group.params[0]);
  for (const EquivariantParamState& state : trial.states) result.push_back(state.momentum_buffer());
  return result;
}

template <typename Step>
void take(Trial& trial, Step&& step) {
  place_scalars(trial.groups, trial.inputs);
  Plan plan;
  plan.update(trial.groups);
  for (Bucket bucket : plan.buckets()) {
    bucket.rule.polar.ns_steps = 0;  // polar_update's neighbours have cases of their own
    step(bucket, trial.groups);
  }
}

double roundoff(at::ScalarType dtype) {
  return dtype == at::kDouble  ? 0x1p-52
         : dtype == at::kFloat ? 0x1p-23
         : dtype == at::kHalf  ? 0x1p-10
                               : 0x1p-7;
}

}  // namespace

std::vector<at::Tensor> run_steps(const KernelUse& use) {
  const auto make = use.kernel == Kernel::polar_update  ? polar_kernel_step
                    : use.kernel == Kernel::column_norm ? column_norm_kernel_step
                                                        : row_norm_kernel_step;
  std::vector<at::Tensor> result;
  for (const Variant& variant : variants_of(use)) {
    Trial trial = trial_of(use, variant, use.device);
    take(trial, [&](const Bucket& bucket, const std::vector<StepGroup>& groups) {
      const auto step = make(bucket, groups);
      TORCH_INTERNAL_ASSERT(step && step->kernel == use.kernel &&
                            step->dtypes == std::vector<Dtypes>{use.dtypes});
      step->run();
    });
    for (const at::Tensor& tensor : tensors_of(trial)) result.push_back(tensor);
  }
  return result;
}

std::vector<Expected> expected_steps(const KernelUse& use) {
  std::vector<Expected> result;
  for (const Variant& variant : variants_of(use)) {
    Trial trial = trial_of(use, variant, at::kCPU);
    const std::vector<Shape> shapes = shapes_of(use.kernel);
    std::vector<at::Tensor> before;
    for (const at::Tensor& t : tensors_of(trial)) before.push_back(t.to(at::kDouble, false, true));
    take(trial, reference_step);
    const std::vector<at::Tensor> after = tensors_of(trial);
    const double compute = roundoff(compute_dtype(use));
    for (size_t i = 0; i < after.size(); ++i) {
      const at::Tensor value = after[i].to(at::kDouble);
      const bool is_param = i < trial.groups.size();
      // Each is rounded once, which may go either way; momentum is a sum of two products.
      double rounding = roundoff(use.dtypes[is_param ? 0 : 1]), error = 8 * compute;
      at::Tensor terms = value.abs();  // what has been added up
      if (is_param) {
        // The sum of a unit's squares, or a mean, is off by a roundoff for each element at most,
        // whatever its order, on either side; what follows by a few. Products are rounded twice.
        const Shape& shape = shapes[i];
        const int64_t rows = variant.center ? shape.sizes[shape.sizes.size() - 2] : 0;
        error = compute * static_cast<double>(shape.unit + 2 * rows + 16);
        if (is_polar(use)) error += 3 * roundoff(use.dtypes[2]);
        terms = before[i].abs() + (value - before[i]).abs();
        // Means mix a column's elements.
        if (variant.center) terms = terms.amax(-2, /*keepdim=*/true).expand(value.sizes());
      }
      if (variant.overflow || (variant.rounds && is_param)) rounding = error = 0;
      result.push_back(
          {describe(std::string(variant.name) + (is_param ? "the parameter" : "the momentum"),
                    value),
           value, value.abs() * rounding + terms * error});
    }
  }
  return result;
}

}  // namespace erlangen
