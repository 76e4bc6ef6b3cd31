// Between option values and plain values (c10::IValue): None, bool, int, float, str, list, dict.
// Bindings and archives both go through these, so that a value is converted in one place.
#pragma once

#include <ATen/core/ivalue.h>
#include <erlangen/options.h>

#include <string>

namespace erlangen {

c10::IValue to_ivalue(bool value);
c10::IValue to_ivalue(int64_t value);
c10::IValue to_ivalue(double value);
c10::IValue to_ivalue(const std::string& value);
c10::IValue to_ivalue(const std::optional<bool>& value);
c10::IValue to_ivalue(const std::optional<int64_t>& value);
c10::IValue to_ivalue(const std::tuple<double, double>& value);
c10::IValue to_ivalue(const std::vector<std::string>& value);
c10::IValue to_ivalue(const NsCoefficients& value);
c10::IValue to_ivalue(const Layout& value);

// Each raises c10::TypeError, naming the option and the value, for a value of another type.
void from_ivalue(const std::string& name, const c10::IValue& value, bool& out);
void from_ivalue(const std::string& name, const c10::IValue& value, int64_t& out);
void from_ivalue(const std::string& name, const c10::IValue& value, double& out);
void from_ivalue(const std::string& name, const c10::IValue& value, std::string& out);
void from_ivalue(const std::string& name, const c10::IValue& value, std::optional<bool>& out);
void from_ivalue(const std::string& name, const c10::IValue& value, std::optional<int64_t>& out);
void from_ivalue(const std::string& name, const c10::IValue& value,
                 std::tuple<double, double>& out);
void from_ivalue(const std::string& name, const c10::IValue& value, std::vector<std::string>& out);
void from_ivalue(const std::string& name, const c10::IValue& value, NsCoefficients& out);
// Raises c10::ValueError for an unknown verb, a missing, surplus or unknown entry of a step.
void from_ivalue(const std::string& name, const c10::IValue& value, Layout& out);

// A plain value as a Python user would write it, for error messages.
std::string repr(const c10::IValue& value);

}  // namespace erlangen
