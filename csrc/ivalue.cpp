#include "ivalue.h"

#include "layout.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <sstream>
#include <string_view>

namespace erlangen {

using c10::IValue;

namespace {

c10::impl::GenericList any_list() { return c10::impl::GenericList(c10::AnyType::get()); }

bool is_sequence(const IValue& value) { return value.isList() || value.isTuple(); }

std::vector<IValue> elements(const IValue& value) {
  if (value.isTuple()) {
    const auto& items = value.toTupleRef().elements();
    return std::vector<IValue>(items.begin(), items.end());
  }
  return value.toListRef().vec();
}

[[noreturn]] void type_error(const std::string& name, const IValue& value, const char* allowed) {
  TORCH_CHECK_TYPE(false, name, " must be ", allowed, ", got ", repr(value));
}

LayoutStep layout_step(const std::string& name, const IValue& value) {
  if (!value.isGenericDict()) type_error(name, value, "a dict such as {\"heads\": 8, \"dim\": -2}");
  const Verb* verb = nullptr;
  LayoutStep step;
  bool has_dim = false;
  for (const auto& item : value.toGenericDict()) {
    if (!item.key().isString()) type_error(name, item.key(), "a str key");
    const std::string& key = item.key().toStringRef();
    if (key == "dim") {
      from_ivalue(name + "[\"dim\"]", item.value(), step.dim);
      has_dim = true;
      continue;
    }
    const Verb* found = nullptr;
    for (const auto& candidate : kVerbs) {
      if (key == candidate.name) found = &candidate;
    }
    TORCH_CHECK_VALUE(found, name, ": unknown layout step ", repr(value),
                      "; allowed: ", verb_names());
    TORCH_CHECK_VALUE(!verb, name, ": one verb a step, got ", repr(value));
    verb = found;
    const std::string entry = name + "[\"" + key + "\"]";
    if (key == "flatten" && item.value().isString()) {
      from_ivalue(entry, item.value(), step.order);
    } else if (key == "transpose" || key == "flatten") {
      bool on = false;
      from_ivalue(entry, item.value(), on);
      TORCH_CHECK_VALUE(on, entry, " must be True: leave the step out instead of switching it off");
    } else if (key == "heads") {
      from_ivalue(entry, item.value(), step.sizes.emplace_back());
    } else if (key == "pairs") {
      from_ivalue(entry, item.value(), step.order);
    } else {
      if (!is_sequence(item.value())) type_error(entry, item.value(), "a list of int");
      for (const auto& size : elements(item.value())) {
        from_ivalue(entry, size, step.sizes.emplace_back());
      }
    }
  }
  TORCH_CHECK_VALUE(verb, name, ": no verb in ", repr(value), "; allowed: ", verb_names());
  TORCH_CHECK_VALUE(
      has_dim == verb->has_dim, name, ": ", verb->name,
      verb->has_dim ? " needs a \"dim\" (-2 or -1): " : " takes no \"dim\": ", repr(value));
  step.verb = verb->name;
  return step;
}

}  // namespace

IValue to_ivalue(bool value) { return value; }
IValue to_ivalue(int64_t value) { return value; }
IValue to_ivalue(double value) { return value; }
IValue to_ivalue(const std::string& value) { return value; }
IValue to_ivalue(const std::optional<bool>& value) { return value ? IValue(*value) : IValue(); }
IValue to_ivalue(const std::optional<int64_t>& value) { return value ? IValue(*value) : IValue(); }

IValue to_ivalue(const std::tuple<double, double>& value) {
  return c10::ivalue::Tuple::create(std::get<0>(value), std::get<1>(value));
}

IValue to_ivalue(const std::vector<std::string>& value) {
  auto list = any_list();
  for (const auto& item : value) list.push_back(item);
  return list;
}

IValue to_ivalue(const NsCoefficients& value) {
  if (value.triples.empty()) return value.name;
  auto list = any_list();
  for (const auto& [a, b, c] : value.triples) {
    auto triple = any_list();
    for (double coefficient : {a, b, c}) triple.push_back(coefficient);
    list.push_back(std::move(triple));
  }
  return list;
}

IValue to_ivalue(const Layout& value) {
  if (value.empty()) return IValue();
  auto list = any_list();
  for (const auto& step : value) {
    c10::impl::GenericDict dict(c10::StringType::get(), c10::AnyType::get());
    if (step.verb == "heads") {
      dict.insert(step.verb, step.sizes.at(0));
    } else if (step.verb == "pairs") {
      dict.insert(step.verb, step.order);
    } else if (step.verb == "sections") {
      auto sizes = any_list();
      for (int64_t size : step.sizes) sizes.push_back(size);
      dict.insert(step.verb, std::move(sizes));
    } else if (step.verb == "flatten" && !step.order.empty()) {
      dict.insert(step.verb, step.order);
    } else {
      dict.insert(step.verb, true);
    }
    const auto verb = std::find_if(std::begin(kVerbs), std::end(kVerbs),
                                   [&](const Verb& v) { return step.verb == v.name; });
    if (verb != std::end(kVerbs) && verb->has_dim) dict.insert("dim", step.dim);
    list.push_back(std::move(dict));
  }
  return list;
}

void from_ivalue(const std::string& name, const IValue& value, bool& out) {
  if (!value.isBool()) type_error(name, value, "True or False");
  out = value.toBool();
}

void from_ivalue(const std::string& name, const IValue& value, int64_t& out) {
  if (!value.isInt()) type_error(name, value, "an int");
  out = value.toInt();
}

void from_ivalue(const std::string& name, const IValue& value, double& out) {
  if (value.isInt()) {
    out = static_cast<double>(value.toInt());
  } else if (value.isDouble()) {
    out = value.toDouble();
  } else {
    type_error(name, value, "a number");
  }
}

void from_ivalue(const std::string& name, const IValue& value, std::string& out) {
  if (!value.isString()) type_error(name, value, "a str");
  out = value.toStringRef();
}

void from_ivalue(const std::string& name, const IValue& value, std::optional<bool>& out) {
  if (value.isNone()) {
    out.reset();
  } else if (!value.isBool()) {
    type_error(name, value, "None, True or False");
  } else {
    from_ivalue(name, value, out.emplace());
  }
}

void from_ivalue(const std::string& name, const IValue& value, std::optional<int64_t>& out) {
  if (value.isNone()) {
    out.reset();
  } else if (!value.isInt()) {
    type_error(name, value, "None or an int");
  } else {
    from_ivalue(name, value, out.emplace());
  }
}

void from_ivalue(const std::string& name, const IValue& value, std::tuple<double, double>& out) {
  if (!is_sequence(value) || elements(value).size() != 2) type_error(name, value, "two numbers");
  const auto items = elements(value);
  from_ivalue(name + "[0]", items[0], std::get<0>(out));
  from_ivalue(name + "[1]", items[1], std::get<1>(out));
}

void from_ivalue(const std::string& name, const IValue& value, std::vector<std::string>& out) {
  if (!is_sequence(value)) type_error(name, value, "a list of str");
  out.clear();
  for (const auto& item : elements(value)) from_ivalue(name, item, out.emplace_back());
}

void from_ivalue(const std::string& name, const IValue& value, NsCoefficients& out) {
  constexpr const char* kAllowed =
      "the name of a set, three numbers (a, b, c), or a list of such triples";
  out = {};
  if (value.isString()) {
    out.name = value.toStringRef();
    return;
  }
  if (!is_sequence(value) || elements(value).empty()) type_error(name, value, kAllowed);
  auto triples = elements(value);
  if (!is_sequence(triples[0])) triples = {value};  // one triple, for all steps
  out.name.clear();
  for (const auto& triple : triples) {
    if (!is_sequence(triple) || elements(triple).size() != 3) type_error(name, value, kAllowed);
    auto& coefficients = out.triples.emplace_back();
    for (size_t i = 0; i < 3; ++i) from_ivalue(name, elements(triple)[i], coefficients[i]);
  }
}

void from_ivalue(const std::string& name, const IValue& value, Layout& out) {
  out.clear();
  if (value.isNone()) return;
  if (!is_sequence(value)) type_error(name, value, "None or a list of steps");
  const auto steps = elements(value);
  for (size_t i = 0; i < steps.size(); ++i) {
    out.push_back(layout_step(name + "[" + std::to_string(i) + "]", steps[i]));
  }
}

std::string repr(const IValue& value) {
  std::ostringstream out;
  const auto join = [&out](const auto& items, const auto& write) {
    const char* separator = "";
    for (const auto& item : items) {
      out << separator;
      write(item);
      separator = ", ";
    }
  };
  if (value.isNone()) {
    out << "None";
  } else if (value.isBool()) {
    out << (value.toBool() ? "True" : "False");
  } else if (value.isString()) {
    out << '"' << value.toStringRef() << '"';
  } else if (value.isGenericDict()) {
    out << '{';
    join(value.toGenericDict(),
         [&out](const auto& item) { out << repr(item.key()) << ": " << repr(item.value()); });
    out << '}';
  } else if (is_sequence(value)) {
    out << '[';
    join(elements(value), [&out](const IValue& item) { out << repr(item); });
    out << ']';
  } else if (value.isDouble()) {
    char buffer[32];  // as few digits as tell the number from its neighbours
    const auto end = std::to_chars(buffer, std::end(buffer), value.toDouble()).ptr;
    const std::string_view digits(buffer, end - buffer);
    out << digits << (digits.find_first_of(".en") == digits.npos ? ".0" : "");
  } else {
    out << value;
  }
  return out.str();
}

}  // namespace erlangen
