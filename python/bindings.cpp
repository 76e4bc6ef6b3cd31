// Between Python and liberlangen: conversions, no logic.
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <erlangen/functional.h>
#include <erlangen/optimizer.h>
#include <erlangen/options.h>
#include <erlangen/routing.h>

#include "check.h"
#include "explain.h"
#include "ivalue.h"
#include "plan.h"
#include "polar_iteration.h"
#include "routing/conventions.h"
#include "routing/experts.h"
#include "routing/findings.h"
#include "routing/matching.h"
#include "routing/messages.h"
#include "routing/name_patterns.h"
#include "self_check.h"
#include "step.h"
#include "symmetric_product.h"

#include <array>
#include <deque>
#include <optional>

namespace py = pybind11;

namespace {

using erlangen::EquivariantOptions;
using erlangen::EquivariantParamState;

std::string shown(py::handle value) { return std::string(py::repr(value)); }

std::string type_name(py::handle value) {
  return std::string(py::str(py::type::handle_of(value).attr("__name__")));
}

// Clears a TypeError, which says that a value with a number's methods is no number (numpy's
// arrays).
void clear_type_error() {
  if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
  PyErr_Clear();
}

// Python's plain values, numbers, lists and dicts of other packages (numpy, OmegaConf), and tensors
// of one element as the number they hold.
c10::IValue to_ivalue(const std::string& name, py::handle value) {
  if (value.is_none()) return {};
  if (py::isinstance<py::bool_>(value)) return value.cast<bool>();
  if (THPVariable_Check(value.ptr())) {
    const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
    TORCH_CHECK_VALUE(
        tensor.numel() == 1 && !tensor.is_complex() && tensor.scalar_type() != at::kBool, name,
        " is ", shown(value), "; allowed: a number or a tensor that holds one real number");
    return tensor.item().toDouble();
  }
  if (py::isinstance<py::str>(value)) return value.cast<std::string>();
  if (py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value)) {
    c10::impl::GenericList list(c10::AnyType::get());
    for (py::handle item : value) list.push_back(to_ivalue(name, item));
    return list;
  }
  if (py::isinstance<py::dict>(value)) {
    c10::impl::GenericDict dict(c10::StringType::get(), c10::AnyType::get());
    for (const auto& [key, item] : py::reinterpret_borrow<py::dict>(value)) {
      TORCH_CHECK_TYPE(py::isinstance<py::str>(key), name, " has the key ", shown(key),
                       "; allowed: str keys");
      dict.insert(key.cast<std::string>(), to_ivalue(name, item));
    }
    return dict;
  }
  if (PyIndex_Check(value.ptr())) {
    if (const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()))) {
      int overflow = 0;
      const int64_t result = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
      TORCH_CHECK_VALUE(!overflow, name, " is ", shown(value), "; allowed: ints of 64 bits");
      return result;
    }
    clear_type_error();
  }
  if (PyFloat_Check(value.ptr()) || py::hasattr(value, "__float__")) {
    if (const auto number = py::reinterpret_steal<py::object>(PyNumber_Float(value.ptr()))) {
      return number.cast<double>();
    }
    clear_type_error();
  }
  if (py::hasattr(value, "keys") && py::hasattr(value, "__getitem__")) {
    const py::dict dict;
    for (py::handle key : value.attr("keys")()) dict[key] = value[key];
    return to_ivalue(name, dict);
  }
  if (PySequence_Check(value.ptr()) && !py::isinstance<py::bytes>(value)) {
    return to_ivalue(name, py::list(py::reinterpret_borrow<py::object>(value)));
  }
  TORCH_CHECK_TYPE(!THPDtype_Check(value.ptr()), name, " is ", shown(value),
                   "; allowed: its name, a str such as \"bfloat16\"");
  TORCH_CHECK_TYPE(false, name, " is ", shown(value), ", of type ", type_name(value),
                   "; allowed: None, bool, int, float, str, list, dict");
}

py::object to_python(const c10::IValue& value) {
  if (value.isBool()) return py::bool_(value.toBool());
  if (value.isInt()) return py::int_(value.toInt());
  if (value.isDouble()) return py::float_(value.toDouble());
  if (value.isString()) return py::str(value.toStringRef());
  if (value.isTuple()) {
    py::list items;
    for (const c10::IValue& item : value.toTupleRef().elements()) items.append(to_python(item));
    return py::tuple(items);
  }
  if (value.isList()) {
    py::list list;
    for (const c10::IValue& item : value.toListRef()) list.append(to_python(item));
    return list;
  }
  if (value.isGenericDict()) {
    py::dict dict;
    for (const auto& item : value.toGenericDict()) {
      dict[to_python(item.key())] = to_python(item.value());
    }
    return dict;
  }
  return py::none();
}

py::dict to_dict(const EquivariantOptions& options, bool only_set) {
  py::dict dict;
  for (const std::string& name : EquivariantOptions::names()) {
    if (!only_set || options.is_set(name)) dict[py::str(name)] = to_python(options.get(name));
  }
  return dict;
}

// A Python parameter group: our options among its entries, and its parameters. Entries that are
// not options are other people's (schedulers, newer versions).
struct Group {
  EquivariantOptions options;
  std::vector<at::Tensor> params;
  at::Tensor lr, weight_decay;  // where they were tensors on a GPU and left there
};

at::Tensor to_tensor(py::handle value, const std::string& where) {
  TORCH_CHECK_TYPE(THPVariable_Check(value.ptr()), where, " is ", shown(value),
                   "; allowed: a tensor");
  return THPVariable_Unpack(value.ptr());
}

// Numbers that a step can read on the device.
at::Tensor* scalar_of(Group& group, const std::string& name) {
  return name == "lr" ? &group.lr : name == "weight_decay" ? &group.weight_decay : nullptr;
}

// With `leave_scalars` nothing is read from a GPU, so that nothing waits for it.
Group to_group(const py::dict& dict, size_t index, bool leave_scalars = false) {
  static const std::vector<std::string> names = EquivariantOptions::names();
  const std::string where = "param_groups[" + std::to_string(index) + "]";
  Group group;
  for (const std::string& name : names) {
    PyObject* value = PyDict_GetItemString(dict.ptr(), name.c_str());
    if (!value) continue;
    at::Tensor* scalar = leave_scalars ? scalar_of(group, name) : nullptr;
    if (scalar && THPVariable_Check(value) && !THPVariable_Unpack(value).is_cpu()) {
      *scalar = THPVariable_Unpack(value);
      continue;
    }
    group.options.set(name, to_ivalue(where + ": " + name, value), where + ": ");
  }
  for (py::handle param : dict["params"]) {
    group.params.push_back(to_tensor(param, where + ": a parameter"));
  }
  // Wrappers that shard, such as ZeroRedundancyOptimizer, copy a group with part of its parameters,
  // in an order of their own. Its names are the whole group's, and nobody says which are these'.
  if (group.options.param_names().size() > group.params.size()) group.options.param_names({});
  return group;
}

// A dict's value, or null: one look, without the entry that a defaultdict would make.
py::object found_in(const py::dict& dict, py::handle key) {
  PyObject* value = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (!value && PyErr_Occurred()) throw py::error_already_set();
  return py::reinterpret_borrow<py::object>(value);
}

// The state of a step's parameters, read from the optimizer's dicts and written back to them.
class States {
 public:
  explicit States(py::dict state) : state_(std::move(state)) {}

  // `where` names the parameter in errors.
  EquivariantParamState* read(py::handle param, c10::function_ref<std::string()> where) {
    Entry& entry = entries_.emplace_back();
    entry.param = py::reinterpret_borrow<py::object>(param);
    const py::object dict = found_in(state_, param);
    if (!dict) return &entry.state;
    TORCH_CHECK_TYPE(py::isinstance<py::dict>(dict), where(), ": the state is ", shown(dict),
                     "; allowed: a dict");
    entry.dict = py::reinterpret_borrow<py::dict>(dict);
    each(entry.state, [&](py::handle name, at::Tensor& tensor) {
      const py::object value = found_in(*entry.dict, name);
      if (!value) return;
      TORCH_CHECK_TYPE(THPVariable_Check(value.ptr()), where(), ": state ",
                       std::string(py::str(name)), " is ", shown(value), "; allowed: a tensor");
      tensor = THPVariable_Unpack(value.ptr());
    });
    return &entry.state;
  }

  static std::vector<std::string> names() {
    std::vector<std::string> result;
    EquivariantParamState state;
    each(state, [&](py::handle name, at::Tensor&) { result.push_back(name.cast<std::string>()); });
    return result;
  }

  void write_back() {
    for (Entry& entry : entries_) {
      each(entry.state, [&](py::handle name, at::Tensor& tensor) {
        if (!tensor.defined()) return;
        if (!entry.dict) state_[entry.param] = entry.dict.emplace();
        const py::object before = found_in(*entry.dict, name);
        const bool kept = before && THPVariable_Unpack(before.ptr()).is_same(tensor);
        if (!kept) (*entry.dict)[name] = py::cast(tensor);
      });
    }
  }

 private:
  struct Entry {
    py::object param;
    std::optional<py::dict> dict;
    EquivariantParamState state;
  };

  // Strings made and hashed once: a step looks each of them up for every parameter.
  template <typename Visitor>
  static void each(EquivariantParamState& state, Visitor&& visitor) {
    static const std::array<py::handle, 4> names = {
        PyUnicode_InternFromString("momentum_buffer"), PyUnicode_InternFromString("exp_avg"),
        PyUnicode_InternFromString("exp_avg_sq"), PyUnicode_InternFromString("step")};
    visitor(names[0], state.momentum_buffer());
    visitor(names[1], state.exp_avg());
    visitor(names[2], state.exp_avg_sq());
    visitor(names[3], state.step());
  }

  py::dict state_;
  std::deque<Entry> entries_;  // where they stay: a step holds their addresses
};

void step(erlangen::Plan& plan, const py::list& param_groups, const py::dict& state,
          const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf,
          bool capturing) {
  std::vector<erlangen::StepGroup> groups;
  States states(state);
  for (py::handle dict : param_groups) {
    Group group = to_group(py::reinterpret_borrow<py::dict>(dict), groups.size(), true);
    auto& step_group = groups.emplace_back();
    const auto where = [&] {
      return erlangen::describe_param(groups.size() - 1, step_group.states.size(), group.options);
    };
    for (py::handle param : dict["params"]) step_group.states.push_back(states.read(param, where));
    step_group.options = std::move(group.options);
    step_group.params = std::move(group.params);
    step_group.lr = std::move(group.lr);
    step_group.weight_decay = std::move(group.weight_decay);
  }
  try {
    const py::gil_scoped_release no_gil;
    erlangen::step(
        plan, groups,
        {grad_scale.value_or(at::Tensor()), found_inf.value_or(at::Tensor()), capturing});
  } catch (...) {                 // out of memory halfway: what has moved keeps its state
    const py::error_scope aside;  // a Python error, such as a dispatch mode's, stays what it is
    states.write_back();
    throw;
  }
  states.write_back();
}

void check_group(const py::dict& dict, size_t index) {
  const Group group = to_group(dict, index);
  const std::string where = erlangen::describe_group(index, group.options);
  erlangen::check_options(group.options, where);
  erlangen::check_param_names(group.options, group.params.size(), where);
  for (size_t p = 0; p < group.params.size(); ++p) {
    erlangen::check_param(group.params[p], group.options,
                          erlangen::describe_param(index, p, group.options));
  }
}

void check_states(const py::dict& dict, size_t index, const py::dict& state) {
  const Group group = to_group(dict, index);
  States states(state);
  size_t p = 0;
  for (py::handle param : dict["params"]) {
    if (state.contains(param)) {
      const auto where = [&] { return erlangen::describe_param(index, p, group.options); };
      const EquivariantParamState* loaded = states.read(param, where);
      erlangen::check_state(*loaded, group.params[p], where);
      erlangen::check_state_complete(*loaded, group.params[p], group.options, where);
      // Other entries are other people's: wrappers keep theirs beside ours.
      TORCH_CHECK_VALUE(!state[param].contains("max_exp_avg_sq"), where(),
                        ": the loaded state has max_exp_avg_sq, the maximum of AMSGrad, which no "
                        "rule continues from");
    }
    ++p;
  }
}

std::string explain(const py::list& param_groups, bool full) {
  std::vector<erlangen::ExplainGroup> groups;
  for (py::handle dict : param_groups) {
    Group group = to_group(py::reinterpret_borrow<py::dict>(dict), groups.size());
    groups.push_back({std::move(group.options), std::move(group.params)});
  }
  return erlangen::explain(groups, full);
}

// Role, why and layout (None: the whole matrix) of each linear map that is recognised, by the index
// of its place.
py::dict recognise_maps(const erlangen::ModuleTree& tree) {
  py::dict result;
  for (const auto& [place, found] : erlangen::recognise_maps(tree)) {
    const auto layout = to_python(EquivariantOptions().layout(found.layout).get("layout"));
    result[py::int_(place)] = py::make_tuple(found.role, found.why, layout);
  }
  return result;
}

// Role, whether stored as [E, in, out], and whether gate and up are in one, of each stack by name.
py::dict recognise_stacks(const std::map<std::string, erlangen::Shape>& tensors,
                          const std::set<int64_t>& counts, const std::vector<erlangen::Shape>& maps,
                          std::optional<int64_t> width) {
  py::dict result;
  for (const auto& [name, stack] : erlangen::recognise_stacks(tensors, counts, maps, width)) {
    result[py::str(name)] = py::make_tuple(stack.role, stack.is_transposed, stack.has_halves);
  }
  return result;
}

using AssumedTuple = std::tuple<std::string, std::vector<int64_t>, std::string, std::string>;

std::string assumed_message(const std::vector<AssumedTuple>& params,
                            const std::vector<std::string>& names, int64_t matrices,
                            int64_t elements, bool all) {
  std::vector<erlangen::AssumedParam> assumed;
  for (const auto& [name, shape, role, why] : params) assumed.push_back({name, shape, role, why});
  const auto entry = [](const std::string& name, const std::string& role) {
    return shown(py::str(name)) + ": {'role': " + shown(py::str(role)) + "}";
  };
  return erlangen::assumed_message(assumed, names, matrices, elements, all,
                                   {"overrides={", "}", entry, R"([{"heads": 8, "dim": -2}])"});
}

at::Tensor symmetric_product(const at::Tensor& x, const std::optional<at::Tensor>& y,
                             const std::optional<at::Tensor>& c, double beta) {
  TORCH_CHECK_VALUE(x.dim() == 2 && at::isFloatingType(x.scalar_type()), "x has the shape ",
                    x.sizes(), " and dtype ", x.scalar_type(),
                    "; allowed: two dimensions, floating point");
  TORCH_CHECK_VALUE(!y || (y->sizes() == x.sizes() && y->options().type_equal(x.options())),
                    "y is not of x's shape, dtype and device");
  TORCH_CHECK_VALUE(c ? c->sizes() == at::IntArrayRef({x.size(0), x.size(0)}) &&
                            c->options().type_equal(x.options())
                      : beta == 0.0,
                    "c is not n×n of x's dtype and device, and beta is ", beta);
  const at::NoGradGuard no_grad;
  const c10::DeviceGuard guard(x.device());
  // Rows may lie apart, as they do in the iteration.
  const auto batch = [](const at::Tensor& t) {
    return (t.stride(1) == 1 ? t : t.contiguous()).unsqueeze(0);
  };
  const int64_t n = x.size(0);
  const at::Tensor out = erlangen::empty_matrices({1, n, n}, x.options());
  const at::Tensor left = batch(x), right = y ? batch(*y) : left;
  erlangen::symmetric_product_out(out, c ? batch(*c) : at::Tensor(), left, right, beta,
                                  /*alpha=*/1.0);
  return out[0];
}

// Adds a function whose C++ errors and warnings become Python's, as those of torch's own do.
template <typename Function, typename... Extra>
void def(py::module_& m, const char* name, Function&& function, const Extra&... extra) {
  m.def(name, torch::wrap_pybind_function(std::forward<Function>(function)), extra...);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Bindings of liberlangen. The public interface is the package erlangen.";
  py::class_<erlangen::Plan>(m, "Plan").def(py::init<>());
  def(m, "step", &step, "One step over param_groups; creates missing state in `state`.",
      py::arg("plan"), py::arg("param_groups"), py::arg("state"), py::kw_only(),
      py::arg("grad_scale") = std::nullopt, py::arg("found_inf") = std::nullopt,
      py::arg("capturing") = false);
  def(m, "check_group", &check_group, "Raises for a group that no step can take.");
  def(m, "check_states", &check_states,
      "Raises for loaded state that does not fit its parameters.");
  def(m, "check_params_apart", [](const std::vector<std::vector<at::Tensor>>& groups) {
    std::vector<std::vector<erlangen::ParamMemory>> memory;
    for (const auto& params : groups) memory.emplace_back(params.begin(), params.end());
    erlangen::check_params_apart(memory);
  });
  def(m, "explain", &explain, py::arg("param_groups"), py::arg("full") = false);
  using erlangen::ModulePlace;
  py::class_<ModulePlace>(m, "ModulePlace")
      .def(py::init<>())
      .def_readwrite("kind", &ModulePlace::kind)
      .def_readwrite("type", &ModulePlace::type)
      .def_readwrite("is_list", &ModulePlace::is_list)
      .def_readwrite("is_container", &ModulePlace::is_container)
      .def_readwrite("users", &ModulePlace::users)
      .def_readwrite("map", &ModulePlace::map)
      .def_readwrite("stated", &ModulePlace::stated)
      .def_readwrite("config", &ModulePlace::config)
      .def_readwrite("experts", &ModulePlace::experts)
      .def_readwrite("own_experts", &ModulePlace::own_experts)
      .def_readwrite("stacks", &ModulePlace::stacks);
  def(m, "recognise_maps", &recognise_maps, "What conventions say of a model's linear maps.");
  def(m, "recognise_stacks", &recognise_stacks, "Experts' matrices in stacks.", py::arg("tensors"),
      py::kw_only(), py::arg("counts"), py::arg("maps"), py::arg("width"));
  def(m, "is_padded", &erlangen::is_padded, "Whether so many rows are a vocabulary's of this size.",
      py::arg("rows"), py::arg("size"));
  m.attr("CHAIN") = erlangen::kChain;
  m.attr("OPEN_HEADS") = erlangen::kOpenHeads;
  def(m, "name_patterns", &erlangen::name_patterns,
      "Regular expressions about names of tensors, modules and classes.");
  def(m, "assumed_message", &assumed_message, "What routing only assumes, in words.",
      py::arg("params"), py::arg("names"), py::arg("matrices"), py::arg("elements"),
      py::arg("all"));
  def(m, "role_names", &erlangen::role_names);
  def(m, "rule_names", &erlangen::rule_names);
  def(m, "option_names", &EquivariantOptions::names);
  def(m, "state_names", &States::names);
  def(m, "plain",
      [](const std::string& name, py::handle value) { return to_python(to_ivalue(name, value)); });
  def(m, "default_options", [] { return to_dict(EquivariantOptions(), false); });
  def(
      m, "role_options",
      [](const std::string& role, py::handle adjust_lr_fn) {
        EquivariantOptions options;
        options.set("adjust_lr_fn", to_ivalue("adjust_lr_fn", adjust_lr_fn));
        return to_dict(erlangen::role_options(role, options.adjust_lr_fn()), true);
      },
      py::arg("role"), py::arg("adjust_lr_fn") = "match_rms_adamw");
  def(m, "preset_options",
      [](const std::string& name) { return to_dict(erlangen::preset_options(name), true); });
  def(m, "kernel_count", &erlangen::kernel_count,
      "Parameters stepped by fused kernels, for tests.");
  def(m, "polar_kernel_count", &erlangen::polar_kernel_count,
      "Batches that the kernel of the polar iteration has taken, for tests.");
  def(m, "symmetric_kernel_count", &erlangen::symmetric_kernel_count,
      "Symmetric products that a kernel of our own has taken, for tests.");
  def(m, "symmetric_product", &symmetric_product,
      "beta * c + x @ y.T of x, y [n, k], symmetric (y=None: x), as the polar iteration computes "
      "it; for benchmarks and tests.",
      py::arg("x"), py::arg("y") = py::none(), py::arg("c") = py::none(), py::arg("beta") = 0.0);
  const auto pairs = [](const std::vector<erlangen::KernelOutcome>& outcomes) {
    std::vector<std::pair<std::string, std::string>> result;
    for (const auto& [kernel, failure] : outcomes) result.emplace_back(kernel, failure);
    return result;
  };
  def(
      m, "check_kernels",
      [pairs](const std::string& device) {
        const py::gil_scoped_release no_gil;
        return pairs(erlangen::check_kernels(at::Device(device)));
      },
      "Runs every kernel that this build has for the device on its cases: [(kernel, what failed)], "
      "\"\" for nothing.",
      py::arg("device"));
  def(
      m, "remembered_outcomes", [pairs] { return pairs(erlangen::remembered_outcomes()); },
      "The kernels that steps have had checked in this process, for tests.");
  def(m, "use_kernels", &erlangen::use_kernels,
      "Fused kernels where there are any, or the reference operations; for tests.", py::arg("use"));
}
