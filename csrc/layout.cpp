#include "layout.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace erlangen {

namespace {

using Dims = std::vector<Dim>;

int64_t numel(const Dims& dims) {
  int64_t product = 1;
  for (const Dim& dim : dims) product *= dim.size;
  return product;
}

// Step `index` of a layout. `where` and the index begin every message.
class Step {
 public:
  Step(const LayoutStep& step, size_t index, const std::string& where)
      : step_(step),
        first_(index == 0),
        where_(where + ": layout[" + std::to_string(index) + "]") {}

  std::vector<MatrixView> apply(MatrixView view) const {
    TORCH_CHECK_VALUE(step_.dim == -2 || step_.dim == -1, where_,
                      ": dim must be -2 (rows) or -1 (columns), got ", step_.dim);
    if (step_.verb == "transpose") {
      std::swap(view.rows, view.cols);
    } else if (step_.verb == "heads") {
      TORCH_CHECK_VALUE(step_.sizes.size() == 1 && step_.sizes[0] > 0, where_,
                        ": heads must be a positive number, got ", at::IntArrayRef(step_.sizes));
      take_outer(side(view), step_.sizes[0], view.batch, "heads");
    } else if (step_.verb == "pairs") {
      pairs(view);
    } else if (step_.verb == "flatten") {
      TORCH_CHECK_VALUE(first_, where_, ": flatten must be the first step");
      TORCH_CHECK_VALUE(step_.order.empty() || step_.order == "kernels", where_,
                        ": flatten must be True or \"kernels\", got \"", step_.order, "\"");
      const bool kernel = view.batch.size() == 2 || view.batch.size() == 3;
      if (step_.order.empty() || kernel) flatten(view);
    } else if (step_.verb == "sections") {
      return sections(view);
    } else {
      TORCH_CHECK_VALUE(false, where_, ": unknown step \"", step_.verb,
                        "\"; allowed: ", verb_names());
    }
    return {view};
  }

 private:
  Dims& side(MatrixView& view) const { return step_.dim == -2 ? view.rows : view.cols; }

  // Splits `dims` into n equal outer parts and appends the index of the part to `target`.
  void take_outer(Dims& dims, int64_t n, Dims& target, const char* what) const {
    const int64_t size = numel(dims);
    TORCH_CHECK_VALUE(size % n == 0, where_, ": ", what, " ", n, " does not divide the size ",
                      size);
    while (n > 1) {
      Dim& outer = dims.front();
      if (n % outer.size == 0) {
        n /= outer.size;
        target.push_back(outer);
        dims.erase(dims.begin());
        continue;
      }
      TORCH_CHECK_VALUE(outer.size % n == 0, where_, ": ", what, " ", n,
                        " cuts through parts that an earlier step or the parameter's strides keep "
                        "apart; put it before that step, or make the parameter contiguous");
      outer.size /= n;
      target.push_back({n, outer.stride * outer.size});
      n = 1;
    }
  }

  void pairs(MatrixView& view) const {
    TORCH_CHECK_VALUE(step_.order == "concatenated" || step_.order == "interleaved", where_,
                      ": pairs must be \"concatenated\" or \"interleaved\", got \"", step_.order,
                      "\"");
    if (step_.dim == -1) std::swap(view.rows, view.cols);  // the slices become rows
    const int64_t size = view.m();
    TORCH_CHECK_VALUE(size % 2 == 0, where_, ": pairs needs an even size, got ", size);
    Dims pair;
    if (step_.order == "concatenated") {
      take_outer(view.rows, 2, pair, "pairs");
    } else {
      Dim& inner = view.rows.back();
      TORCH_CHECK_VALUE(inner.size % 2 == 0, where_,
                        ": interleaved pairs cut through parts of an earlier step");
      pair = {{2, inner.stride}};
      inner = {inner.size / 2, inner.stride * 2};
    }
    view.cols.insert(view.cols.begin(), pair.begin(), pair.end());
  }

  static void flatten(MatrixView& view) {
    Dims all = view.batch;
    all.insert(all.end(), view.rows.begin(), view.rows.end());
    all.insert(all.end(), view.cols.begin(), view.cols.end());
    view.batch.clear();
    view.rows = {all.front()};
    view.cols = merged({all.begin() + 1, all.end()});
  }

  std::vector<MatrixView> sections(MatrixView& view) const {
    Dims& dims = side(view);
    if (dims.empty()) dims.push_back({1, 0});  // an earlier step has taken all of them
    const int64_t size = numel(dims);
    const int64_t inner = size / dims.front().size;  // what one index of the outermost covers
    int64_t begin = 0;
    std::vector<MatrixView> result;
    TORCH_CHECK_VALUE(
        std::all_of(step_.sizes.begin(), step_.sizes.end(), [](auto n) { return n > 0; }), where_,
        ": sections must be positive, got ", at::IntArrayRef(step_.sizes));
    for (int64_t part : step_.sizes) {
      TORCH_CHECK_VALUE(part <= size - begin, where_, ": sections ", at::IntArrayRef(step_.sizes),
                        " add up to more than the size ", size);
      TORCH_CHECK_VALUE(part % inner == 0, where_, ": section ", part,
                        " cuts through parts of an earlier step");
      MatrixView section = view;
      Dim& outer = side(section).front();
      section.offset += begin / inner * outer.stride;
      outer.size = part / inner;
      result.push_back(std::move(section));
      begin += part;
    }
    TORCH_CHECK_VALUE(begin == size, where_, ": sections ", at::IntArrayRef(step_.sizes),
                      " add up to ", begin, ", but the size is ", size);
    return result;
  }

  const LayoutStep& step_;
  const bool first_;
  const std::string where_;
};

}  // namespace

int64_t MatrixView::count() const { return numel(batch); }
int64_t MatrixView::m() const { return numel(rows); }
int64_t MatrixView::n() const { return numel(cols); }

at::Tensor MatrixView::of(const at::Tensor& tensor) const {
  std::vector<int64_t> sizes, strides;
  for (const Dims* dims : {&batch, &rows, &cols}) {
    for (const Dim& dim : *dims) {
      sizes.push_back(dim.size);
      strides.push_back(dim.stride);
    }
  }
  return tensor.as_strided(sizes, strides, tensor.storage_offset() + offset);
}

std::vector<MatrixView> matrix_views(const Layout& layout, at::IntArrayRef sizes,
                                     at::IntArrayRef strides, const std::string& where) {
  const size_t ndim = sizes.size();
  TORCH_CHECK_VALUE(
      ndim >= 2, where, ": a matrix rule needs at least two dimensions, got shape ", sizes,
      ". Allowed here: rule \"adamw\". (A matrix that FSDP1 or DeepSpeed's ZeRO has flattened has "
      "lost its structure: use DDP, which keeps it.)");
  TORCH_CHECK_VALUE(std::find(sizes.begin(), sizes.end(), 0) == sizes.end(), where,
                    ": a matrix rule needs at least one element, got shape ", sizes);
  MatrixView whole;
  for (size_t i = 0; i < ndim; ++i) {
    Dims& target = i + 2 < ndim ? whole.batch : i + 2 == ndim ? whole.rows : whole.cols;
    target.push_back({sizes[i], strides[i]});
  }
  std::vector<MatrixView> views = {whole};
  for (size_t i = 0; i < layout.size(); ++i) {
    const Step step(layout[i], i, where);
    std::vector<MatrixView> next;
    for (MatrixView& view : views) {
      for (MatrixView& part : step.apply(std::move(view))) {
        next.push_back(std::move(part));
      }
    }
    views = std::move(next);
  }
  for (MatrixView& view : views) {
    view.batch = merged(view.batch);
    view.rows = merged(view.rows);
    view.cols = merged(view.cols);
  }
  return views;
}

std::string verb_names() {
  std::string result;
  for (const Verb& verb : kVerbs) result += (result.empty() ? "" : ", ") + std::string(verb.name);
  return result;
}

std::vector<Dim> merged(const std::vector<Dim>& dims) {
  std::vector<Dim> result;
  for (const Dim& dim : dims) {
    if (dim.size == 1) continue;
    if (!result.empty() && result.back().stride == dim.stride * dim.size) {
      result.back() = {result.back().size * dim.size, dim.stride};
    } else {
      result.push_back(dim);
    }
  }
  return result;
}

bool splits_units(const Layout& layout) {
  return std::any_of(layout.begin(), layout.end(), [](const LayoutStep& step) {
    return step.verb == "heads" || step.verb == "sections" || step.verb == "pairs";
  });
}

}  // namespace erlangen
