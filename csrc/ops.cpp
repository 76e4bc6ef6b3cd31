// torch.ops.erlangen.*: the bare rules for torch.compile and torch.export, which see through them
// by their Meta kernels. In the schemas `ns_coefficients` is a flat list of triples, one a step;
// empty means Polar Express's own.
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>
#include <erlangen/functional.h>
#include <torch/library.h>

namespace erlangen {

namespace {

PolarOptions polar_options(at::ArrayRef<double> ns_coefficients, c10::string_view ns_method,
                           c10::string_view ns_dtype) {
  PolarOptions options;
  options.ns_method = std::string(ns_method);
  options.ns_dtype = std::string(ns_dtype);
  TORCH_CHECK_VALUE(ns_coefficients.size() % 3 == 0, "ns_coefficients has ", ns_coefficients.size(),
                    " numbers; allowed: three a step");
  if (ns_coefficients.empty()) return options;
  std::vector<std::array<double, 3>> triples;
  for (size_t i = 0; i < ns_coefficients.size(); i += 3) {
    triples.push_back({ns_coefficients[i], ns_coefficients[i + 1], ns_coefficients[i + 2]});
  }
  options.ns_steps = static_cast<int64_t>(triples.size());
  options.ns_coefficients = std::move(triples);
  return options;
}

template <at::Tensor (*rule)(const at::Tensor&, double, const PolarOptions&)>
at::Tensor spectral_op(const at::Tensor& x, double alpha, at::ArrayRef<double> ns_coefficients,
                       c10::string_view ns_method, c10::string_view ns_dtype) {
  return rule(x, alpha, polar_options(ns_coefficients, ns_method, ns_dtype));
}

at::Tensor hybrid_op(const at::Tensor& x, c10::string_view order, bool center, double alpha,
                     at::ArrayRef<double> ns_coefficients, c10::string_view ns_method,
                     c10::string_view ns_dtype) {
  return hybrid(x, std::string(order), center, alpha,
                polar_options(ns_coefficients, ns_method, ns_dtype));
}

template <typename... Args>
at::Tensor same_shape(const at::Tensor& x, Args...) {
  return at::empty_like(x, x.options(), at::MemoryFormat::Contiguous);
}

#define ERLANGEN_POLAR_ARGS \
  "float[] ns_coefficients=[], str ns_method=\"auto\", str ns_dtype=\"auto\") -> Tensor"

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

TORCH_LIBRARY_IMPL(erlangen, CompositeExplicitAutograd, m) {
  m.impl("center", center);
  m.impl("row_norm", row_norm);
  m.impl("column_norm", column_norm);
  m.impl("spectral", spectral_op<spectral>);
  m.impl("right_spectral", spectral_op<right_spectral>);
  m.impl("left_spectral", spectral_op<left_spectral>);
  m.impl("hybrid", hybrid_op);
}

TORCH_LIBRARY_IMPL(erlangen, Meta, m) {
  using Args = at::ArrayRef<double>;
  using View = c10::string_view;
  m.impl("center", same_shape<>);
  m.impl("row_norm", same_shape<>);
  m.impl("column_norm", same_shape<>);
  m.impl("spectral", same_shape<double, Args, View, View>);
  m.impl("right_spectral", same_shape<double, Args, View, View>);
  m.impl("left_spectral", same_shape<double, Args, View, View>);
  m.impl("hybrid", same_shape<View, bool, double, Args, View, View>);
}

}  // namespace
}  // namespace erlangen
