// How a parameter's tensor is a batch of logical matrices: views computed from sizes and strides,
// never copies.
#pragma once

#include <ATen/core/Tensor.h>
#include <erlangen/options.h>

#include <cstdint>
#include <string>
#include <vector>

namespace erlangen {

struct Dim {
  int64_t size;
  int64_t stride;  // in elements
  bool operator==(const Dim&) const = default;
};

// A batch of equally shaped matrices inside a tensor's storage. Rows and columns are lists of
// dimensions, outermost first, because two dimensions of a tensor need not merge into one
// (a row made of a gate and an up slice that lie far apart).
struct MatrixView {
  int64_t offset = 0;  // of the first element, relative to the tensor's own
  std::vector<Dim> batch, rows, cols;

  int64_t count() const;  // logical matrices
  int64_t m() const;      // their rows
  int64_t n() const;      // their columns

  // The elements of `tensor` seen as [batch..., rows..., cols...]; aliases it.
  at::Tensor of(const at::Tensor& tensor) const;

  bool operator==(const MatrixView&) const = default;
};

// The logical matrices of a tensor with these sizes and strides: one view, or one for each section.
// Raises c10::ValueError, which begins with `where`, when the layout does not fit the sizes.
std::vector<MatrixView> matrix_views(const Layout& layout, at::IntArrayRef sizes,
                                     at::IntArrayRef strides, const std::string& where);

// What a layout step may say. Every step has one verb and, where noted, a dim.
struct Verb {
  const char* name;
  bool has_dim;
};
inline constexpr Verb kVerbs[] = {
    {"transpose", false}, {"sections", true}, {"heads", true}, {"pairs", true}, {"flatten", false}};

// Their names, for error messages: "transpose, sections, ...".
std::string verb_names();

// Merges neighbours that step through memory as one dimension would, and drops those of size 1.
std::vector<Dim> merged(const std::vector<Dim>& dims);

// Whether the layout splits or pairs rows or columns, so that "a row" is no longer a whole unit.
bool splits_units(const Layout& layout);

}  // namespace erlangen
