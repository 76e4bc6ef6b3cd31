// torch.ops.erlangen.*: the bare rules for torch.compile and torch.export, which see through them
// by their Meta kernels. Coefficients are a set's name, or `ns_triples`: three numbers a step,
// flat.
#include <c10/util/Exception.h>
#include <erlangen/functional.h>
#include <torch/library.h>

namespace erlangen {

namespace {

using Text = c10::string_view;
using Triples = at::ArrayRef<double>;
using Steps = std::optional<int64_t>;

PolarOptions polar_options(Text ns_coefficients, Triples ns_triples, Steps ns_steps, Text ns_method,
                           Text ns_dtype) {
  PolarOptions options;
  options.ns_coefficients = std::string(ns_coefficients);
  options.ns_steps = ns_steps;
  options.ns_method = std::string(ns_method);
  options.ns_dtype = std::string(ns_dtype);
  TORCH_CHECK_VALUE(ns_triples.size() % 3 == 0, "ns_triples has ", ns_triples.size(),
                    " numbers; allowed: three a step");
  if (ns_triples.empty()) return options;
  std::vector<std::array<double, 3>> triples;
  for (size_t i = 0; i < ns_triples.size(); i += 3) {
    triples.push_back({ns_triples[i], ns_triples[i + 1], ns_triples[i + 2]});
  }
  options.ns_coefficients = std::move(triples);
  return options;
}

template <at::Tensor (*rule)(const at::Tensor&, double, const PolarOptions&)>
at::Tensor spectral_op(const at::Tensor& x, double alpha, Text ns_coefficients, Triples ns_triples,
                       Steps ns_steps, Text ns_method, Text ns_dtype) {
  return rule(x, alpha, polar_options(ns_coefficients, ns_triples, ns_steps, ns_method, ns_dtype));
}

at::Tensor hybrid_op(const at::Tensor& x, Text order, bool center, double alpha,
                     Text ns_coefficients, Triples ns_triples, Steps ns_steps, Text ns_method,
                     Text ns_dtype) {
  return hybrid(x, std::string(order), center, alpha,
                polar_options(ns_coefficients, ns_triples, ns_steps, ns_method, ns_dtype));
}

#define ERLANGEN_POLAR_ARGS                                                            \
  "str ns_coefficients=\"polar_express\", float[] ns_triples=[], int? ns_steps=None, " \
  "str ns_method=\"auto\", str ns_dtype=\"auto\") -> Tensor"

TORCH_LIBRARY(erlangen, m) {
  m.def("center(Tensor x) -> Tensor");
  m.def("row_norm(Tensor x) -> Tensor");
  m.def("column_norm(Tensor x) -> Tensor");
  m.def("spectral(Tensor x, *, float alpha=0.0, " ERLANGEN_POLAR_ARGS);
  m.def("right_spectral(Tensor x, *, float alpha=0.0, " ERLANGEN_POLAR_ARGS);
  m.def("left_spectral(Tensor x, *, float alpha=0.0, " ERLANGEN_POLAR_ARGS);
  m.def(
      "hybrid(Tensor x, *, str order=\"row_then_polar\", bool center=False, float "
      "alpha=0.0, " ERLANGEN_POLAR_ARGS);
}

void implement(torch::Library& m) {
  m.impl("center", center);
  m.impl("row_norm", row_norm);
  m.impl("column_norm", column_norm);
  m.impl("spectral", spectral_op<spectral>);
  m.impl("right_spectral", spectral_op<right_spectral>);
  m.impl("left_spectral", spectral_op<left_spectral>);
  m.impl("hybrid", hybrid_op);
}

// The same on meta tensors: they check what they are given, and return its shape.
TORCH_LIBRARY_IMPL(erlangen, CompositeExplicitAutograd, m) { implement(m); }
TORCH_LIBRARY_IMPL(erlangen, Meta, m) { implement(m); }

// Their results are no part of autograd's graph, whatever x is.
TORCH_LIBRARY_IMPL(erlangen, Autograd, m) {
  for (const char* name : {"center", "row_norm", "column_norm", "spectral", "right_spectral",
                           "left_spectral", "hybrid"}) {
    m.impl(name, torch::CppFunction::makeFallthrough());
  }
}

}  // namespace
}  // namespace erlangen
