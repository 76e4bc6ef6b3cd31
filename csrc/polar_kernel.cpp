#include "polar_kernel.h"

#include "kernel_step.h"
#include "kernels/cpu/polar_update.h"
#include "polar.h"
#include "polar_iteration.h"
#include "reference.h"
#include "step_parts.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#ifdef ERLANGEN_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/cuda/polar_update.cuh"
#endif

namespace erlangen {

namespace {

using kernels::PolarTensor;
using kernels::PolarUpdateOptions;
using kernels::cpu::PolarBlock;

// ---- Parameters as the kernels take them

// One section of a parameter.
struct Job {
  PolarTensor tensor;
  PolarUpdateOptions options;
};

// One section of all members: an iteration's batch.
struct Section {
  std::vector<Job> jobs;
  int64_t matrices = 0;
  int64_t k = 0, l = 0;
  bool columns = false;  // whether x holds the columns of the logical matrices as its rows
  PolarForm form = {};
  at::Tensor x = {};
};

MatrixView transposed(MatrixView view) {
  std::swap(view.rows, view.cols);
  return view;
}

// Whether all that happens between momentum and parameter is the iteration. Else a rule's reference
// operations run there, on all members at once.
bool iterates_only(const RuleOptions& rule) {
  return rule.rule != "hybrid" && !rule.center && rule.alpha == 0.0 &&
         rule.polar.ns_method != "exact";
}

// All but its place in the batch.
std::optional<Job> job_of(const Bucket& bucket, const MatrixParam& member, const MatrixView& view,
                          const StepGroup& group, at::ScalarType products) {
  enum Buffer { kParam, kGrad, kMomentum, kElement };
  const EquivariantOptions& o = group.options;
  const at::Tensor& param = group.params[member.index.param];
  const at::Tensor& grad = param.grad();
  const EquivariantParamState& state = *group.states[member.index.param];
  const at::Tensor& momentum = state.momentum_buffer();
  const StepScalars& scalars = group.scalars(bucket.device);
  const bool rounds = rounds_stochastically(o, param);
  if (o.support() == "gradient" || grad.scalar_type() != param.scalar_type()) return {};
  std::vector<MatrixView> views;
  for (const at::Tensor* tensor : {&param, &grad, &momentum}) {
    const auto own = view_of(view, *tensor);
    if (!own) return {};
    views.push_back(*own);
  }
  if (rounds) views.push_back(view);
  auto rows = rows_of(views, /*keep_matrices=*/true);
  // Or logical columns lie in memory as rows do; two runs are no reason to pass those by.
  bool across = false;
  if (!rows || rows->segments > 1) {
    std::transform(views.begin(), views.end(), views.begin(), transposed);
    auto columns = rows_of(views, /*keep_matrices=*/true);
    across = columns && (!rows || columns->segments == 1);
    if (across) rows = std::move(columns);
  }
  if (!rows) return {};
  rows->strides.resize(kElement + 1);
  const int64_t m = view.m(), n = view.n();
  const bool takes_gram_of_columns = takes_columns(side_of(bucket.rule.rule), m, n);
  const Job job = {.tensor = {.param = element(param, views[kParam].offset),
                              .grad = element(grad, views[kGrad].offset),
                              .momentum = element(momentum, views[kMomentum].offset),
                              .first = 0,
                              .lr = o.lr(),
                              .lr_pointer = address(scalars.lr),
                              .weight_decay = o.weight_decay(),
                              .weight_decay_pointer = address(scalars.weight_decay),
                              .factor = o.update_scale(),
                              .position = member.index.position,
                              .step = 0,
                              .step_pointer = rounds ? address(state.step()) : nullptr},
                   .options = {.matrices = view.count(),
                               .rows = across ? n : m,
                               .cols = across ? m : n,
                               .segments = rows->segments,
                               .transposed = takes_gram_of_columns != across,
                               .param_strides = rows->strides[kParam],
                               .grad_strides = rows->strides[kGrad],
                               .momentum_strides = rows->strides[kMomentum],
                               .element_strides = rows->strides[kElement],
                               .element_offset = view.offset,
                               .dtype = kernel_dtype(param),
                               .momentum_dtype = kernel_dtype(momentum),
                               .product_dtype = kernel_dtype(products),
                               .momentum = o.momentum(),
                               .nesterov = takes_nesterov(o),
                               .maximize = o.maximize(),
                               .cautious = o.decay() == "cautious",
                               .stochastic_rounding = rounds,
                               .seed = static_cast<uint64_t>(o.seed()),
                               .unscaled = !iterates_only(bucket.rule),
                               .eps = bucket.rule.polar.ns_eps,
                               .scale = shape_scale(bucket.rule, m, n),
                               .found_inf = address(scalars.found_inf),
                               .grad_scale = address(scalars.grad_scale),
                               .x = nullptr,
                               .x_row = 0,
                               .x_matrix = 0}};
  return job;
}

// Section s of the bucket, or nothing where the kernels do not take some member.
std::optional<Section> section_of(const Bucket& bucket, size_t s,
                                  const std::vector<StepGroup>& groups) {
  Section section;
  const MatrixView& shape = bucket.members.front().views[s];
  section.k = shape.m(), section.l = shape.n();
  const Side side = side_of(bucket.rule.rule);
  section.columns = takes_columns(side, section.k, section.l);
  if (section.columns) std::swap(section.k, section.l);
  const at::Tensor& param = param_of(groups, bucket.members.front().index);
  const at::ScalarType compute = compute_dtype(param);
  section.form = iterates_only(bucket.rule) ? polar_form(compute, bucket.device, side, section.k,
                                                         section.l, bucket.rule.polar)
                                            : PolarForm{false, compute};
  for (const MatrixParam& member : bucket.members) {
    const MatrixView& view = member.views[s];
    if (view.count() * view.m() * view.n() == 0) return {};
    auto job = job_of(bucket, member, view, groups[member.index.group], section.form.dtype);
    if (!job) return {};
    job->tensor.first = section.matrices;
    if (!kernels::polar_update_supports(job->options)) return {};
    section.matrices += view.count();
    section.jobs.push_back(*job);
  }
  return section;
}

// What happens to x between momentum and parameter.
void make_direction(const Section& section, const RuleOptions& rule) {
  if (iterates_only(rule)) return polar_normalised(section.x, section.form, rule.polar);
  const at::Tensor z = section.columns ? section.x.mT() : section.x;
  const Direction result = direction(z, rule);
  z.copy_(result.factor.defined() ? result.value * result.factor : result.value);
}

// ---- CPU

// Matrices of up to this many elements stay in a core's own cache from one pass to the next.
constexpr int64_t kElementsInCache = 65536;
constexpr int64_t kGrainElements = 32768;  // at::parallel_for's own grain, in elements
constexpr int64_t kRowsAtOnce = 64;        // of x

// The passes over the matrices of a section, on the CPU.
class CpuPasses {
 public:
  explicit CpuPasses(const Section& section)
      : section_(section), blocks_(kernels::cpu::polar_blocks(section.jobs.front().options)) {
    for (const Job& job : section.jobs) {
      // Other members may lie in memory the other way round.
      blocks_ = std::max(blocks_, kernels::cpu::polar_blocks(job.options));
      for (int64_t i = 0; i < job.options.matrices; ++i) matrices_.push_back({&job, i, {}});
    }
    partials_.resize(matrices_.size() * blocks_);
  }

  // Momentum and normalisation.
  void prepare() {
    if (in_cache()) {
      each_matrix([&](int64_t i) {
        for (int64_t b = 0; b < blocks_; ++b) take_momentum(i, b);
        fold(i);
        for (int64_t b = 0; b < blocks_; ++b) cast(i, b);
        fold(i);
        normalise(i, 0, section_.k);
      });
      return;
    }
    each_block([&](int64_t i, int64_t b) { take_momentum(i, b); });
    for (int64_t i = 0; i < count(); ++i) fold(i);
    each_block([&](int64_t i, int64_t b) { cast(i, b); });
    for (int64_t i = 0; i < count(); ++i) fold(i);
    const int64_t parts = (section_.k + kRowsAtOnce - 1) / kRowsAtOnce;
    at::parallel_for(0, count() * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i % parts * kRowsAtOnce;
        normalise(i / parts, row, std::min(row + kRowsAtOnce, section_.k));
      }
    });
  }

  // The parameters.
  void finish() {
    const auto update = [&](int64_t i, int64_t b) {
      const Job& job = *matrices_[i].job;
      if (b >= kernels::cpu::polar_blocks(job.options)) return;
      kernels::cpu::polar_update_parameter(job.tensor, job.options, block(i, b));
    };
    if (!in_cache()) return each_block(update);
    each_matrix([&](int64_t i) {
      for (int64_t b = 0; b < blocks_; ++b) update(i, b);
    });
  }

 private:
  // What the passes find out about a block or a matrix.
  struct Partial {
    int32_t key = 0;
    double squares = 0;
  };
  struct Matrix {
    const Job* job;
    int64_t index;  // in the job's tensor
    Partial all = {};
  };

  int64_t count() const { return static_cast<int64_t>(matrices_.size()); }
  bool in_cache() const { return section_.k * section_.l <= kElementsInCache; }

  template <typename Visitor>
  void each_matrix(Visitor&& visitor) {
    const int64_t grain = std::max<int64_t>(1, kGrainElements / (section_.k * section_.l));
    at::parallel_for(0, count(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) visitor(i);
    });
  }
  template <typename Visitor>
  void each_block(Visitor&& visitor) {
    at::parallel_for(0, count() * blocks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) visitor(i / blocks_, i % blocks_);
    });
  }

  PolarBlock block(int64_t i, int64_t b) const {
    return kernels::cpu::polar_block(matrices_[i].job->options, matrices_[i].index, b);
  }
  Partial& partial(int64_t i, int64_t b) { return partials_[i * blocks_ + b]; }

  void take_momentum(int64_t i, int64_t b) {
    const Job& job = *matrices_[i].job;
    if (b >= kernels::cpu::polar_blocks(job.options)) return;
    partial(i, b).key = kernels::cpu::polar_update_momentum(job.tensor, job.options, block(i, b));
  }
  void cast(int64_t i, int64_t b) {
    const Job& job = *matrices_[i].job;
    if (b >= kernels::cpu::polar_blocks(job.options)) return;
    partial(i, b).squares =
        kernels::cpu::polar_update_cast(job.tensor, job.options, block(i, b), matrices_[i].all.key);
  }
  void normalise(int64_t i, int64_t begin, int64_t end) {
    const Matrix& matrix = matrices_[i];
    kernels::cpu::polar_update_normalise(matrix.job->tensor, matrix.job->options, matrix.index,
                                         begin, end, matrix.all.key, matrix.all.squares);
  }
  // In the order of the blocks, whoever computed them.
  void fold(int64_t i) {
    Partial& all = matrices_[i].all;
    all = {};
    for (int64_t b = 0; b < blocks_; ++b) {
      all.key = std::max(all.key, partial(i, b).key);
      all.squares += partial(i, b).squares;
    }
  }

  const Section& section_;
  int64_t blocks_;  // of a matrix
  std::vector<Matrix> matrices_;
  std::vector<Partial> partials_;
};

void run_on_cpu(const Section& section, const RuleOptions& rule) {
  if (kernels::polar_update::overflowed(section.jobs.front().options)) return;
  CpuPasses passes(section);
  passes.prepare();
  make_direction(section, rule);
  passes.finish();
}

#ifdef ERLANGEN_CUDA
bool same_call(const PolarUpdateOptions& a, const PolarUpdateOptions& b) {
  const auto fields = [](const PolarUpdateOptions& o) {
    return std::tie(o.matrices, o.rows, o.cols, o.segments, o.transposed, o.param_strides,
                    o.grad_strides, o.momentum_strides, o.element_strides, o.element_offset,
                    o.momentum_dtype, o.momentum, o.nesterov, o.maximize, o.cautious,
                    o.stochastic_rounding, o.seed, o.found_inf, o.grad_scale);
  };
  return fields(a) == fields(b);
}

// Jobs that agree in their options: one launch a pass.
struct Call {
  PolarUpdateOptions options;
  std::vector<PolarTensor> tensors = {};
  at::Tensor scratch = {};

  int64_t count() const { return static_cast<int64_t>(tensors.size()); }
};

void run_on_cuda(const Section& section, const RuleOptions& rule) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(section.x.get_device());
  std::vector<Call> calls;
  for (const Job& job : section.jobs) {
    auto call = std::find_if(calls.begin(), calls.end(), [&](const Call& candidate) {
      return same_call(candidate.options, job.options);
    });
    if (call == calls.end()) call = calls.insert(calls.end(), Call{job.options});
    call->tensors.push_back(job.tensor);
  }
  for (Call& call : calls) {
    call.scratch =
        at::empty({kernels::cuda::polar_update_scratch_bytes(call.count(), call.options)},
                  section.x.options().dtype(at::kByte));
    C10_CUDA_CHECK(kernels::cuda::polar_update_prepare(
        call.tensors.data(), call.count(), call.options, call.scratch.mutable_data_ptr(), stream));
  }
  make_direction(section, rule);
  for (const Call& call : calls) {
    C10_CUDA_CHECK(kernels::cuda::polar_update_finish(call.count(), call.options,
                                                      call.scratch.mutable_data_ptr(), stream));
  }
}
#endif

}  // namespace

std::optional<KernelStep> polar_kernel_step(const Bucket& bucket,
                                            const std::vector<StepGroup>& groups) {
  const RuleOptions& rule = bucket.rule;
  const bool norm_rule = rule.rule == "row_norm" || rule.rule == "column_norm";
  if (norm_rule || bucket.polar_first || !has_kernels(bucket.device)) return {};
  KernelStep step = {Kernel::polar_update, {}, {}};
  std::vector<Section> sections;
  for (size_t s = 0; s < bucket.members.front().views.size(); ++s) {
    auto section = section_of(bucket, s, groups);
    if (!section) return {};
    for (const MatrixParam& member : bucket.members) {
      add_dtypes(step.dtypes, {bucket.dtype, momentum_of(groups, member.index).scalar_type(),
                               section->form.dtype});
    }
    sections.push_back(std::move(*section));
  }
  step.run = [&bucket, &groups, sections = std::move(sections)]() mutable {
    for (Section& section : sections) {  // before anything changes: there may be no room for it
      section.x = empty_matrices({section.matrices, section.k, section.l},
                                 at::TensorOptions(bucket.device).dtype(section.form.dtype));
      for (Job& job : section.jobs) {
        job.options.x = section.x.data_ptr();
        job.options.x_row = section.x.stride(1);
        job.options.x_matrix = section.x.stride(0);
      }
    }
    count_step(bucket, groups);
    mark_changed(bucket, groups);
    for (const Section& section : sections) {
      if (bucket.device.is_cpu()) run_on_cpu(section, bucket.rule);
#ifdef ERLANGEN_CUDA
      if (bucket.device.is_cuda()) run_on_cuda(section, bucket.rule);
#endif
    }
  };
  return step;
}

}  // namespace erlangen
