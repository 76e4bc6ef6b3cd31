// Runs the optimizers of tests/python/trajectory_cases.py and writes what they did, for a bit by
// bit comparison with Python: trajectory INPUT OUTPUT, both as torch.save and torch::pickle_save
// write.

#include <ATen/Parallel.h>
#include <erlangen/erlangen.h>
#include <torch/serialize.h>

#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

using erlangen::Equivariant;
using erlangen::EquivariantOptions;
using torch::optim::OptimizerParamGroup;

c10::IValue read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return torch::pickle_load(std::vector<char>(std::istreambuf_iterator<char>(file), {}));
}

c10::IValue entry(const c10::IValue& dict, const char* key) { return dict.toGenericDict().at(key); }

EquivariantOptions options_of(const c10::IValue& dict) {
  EquivariantOptions options;
  for (const auto& item : dict.toGenericDict()) {
    options.set(item.key().toStringRef(), item.value());
  }
  return options;
}

using Optimizer = std::unique_ptr<Equivariant>;
using Groups = std::vector<OptimizerParamGroup>;

template <typename Class>
Optimizer make(const Groups& groups, const EquivariantOptions& defaults) {
  return std::make_unique<Class>(groups, defaults);
}

const std::map<std::string, std::function<Optimizer(const Groups&, const EquivariantOptions&)>>
    kPresets = {{"Equivariant", make<Equivariant>},
                {"Muon", make<erlangen::Muon>},
                {"PolarGrad", make<erlangen::PolarGrad>},
                {"RowNorm", make<erlangen::RowNorm>},
                {"RightSpectral", make<erlangen::RightSpectral>},
                {"LeftSpectral", make<erlangen::LeftSpectral>},
                {"Hybrid", make<erlangen::Hybrid>}};

struct Run {
  std::vector<torch::Tensor> params;
  Optimizer optimizer;
};

// The optimizer of a case over copies of `values`, or of the case's own parameters.
Run start(const c10::IValue& plan, const std::vector<torch::Tensor>& values = {}) {
  Run run;
  Groups groups;
  for (const c10::IValue& group : entry(plan, "groups").toListRef()) {
    std::vector<torch::Tensor> params;
    for (const c10::IValue& given : entry(group, "params").toListRef()) {
      const auto& value = values.empty() ? given.toTensor() : values[run.params.size()];
      params.push_back(value.detach().clone().requires_grad_());
      run.params.push_back(params.back());
    }
    groups.emplace_back(params,
                        std::make_unique<EquivariantOptions>(options_of(entry(group, "options"))));
  }
  const auto& preset = kPresets.at(entry(plan, "preset").toStringRef());
  run.optimizer = preset(groups, options_of(entry(plan, "defaults")));
  return run;
}

Run through_file(const c10::IValue& plan, Run run, const std::string& file) {
  torch::save(*run.optimizer, file);
  Run next = start(plan, run.params);
  torch::load(*next.optimizer, file);
  return next;
}

void append_state(c10::impl::GenericList& out, Equivariant& optimizer, const torch::Tensor& param) {
  const auto& state = static_cast<const erlangen::EquivariantParamState&>(
      *optimizer.state().at(param.unsafeGetTensorImpl()));
  for (const auto& tensor :
       {state.momentum_buffer(), state.exp_avg(), state.exp_avg_sq(), state.step()}) {
    if (tensor.defined()) out.push_back(tensor);
  }
}

// Parameters after each step, then the state tensors of each parameter, in one list.
c10::IValue trajectory(const c10::IValue& plan, const std::string& file) {
  Run run = start(plan);
  c10::impl::GenericList out(c10::AnyType::get());
  const auto grads = entry(plan, "grads").toListRef();
  const int64_t save_step = entry(plan, "save_step").toInt();
  for (int64_t step = 0; step < static_cast<int64_t>(grads.size()); ++step) {
    if (step == save_step) run = through_file(plan, std::move(run), file);
    for (const c10::IValue& halved : entry(plan, "halve_lr").toListRef()) {
      if (step != halved.toInt()) continue;
      for (auto& group : run.optimizer->param_groups()) {
        group.options().set_lr(group.options().get_lr() / 2);
      }
    }
    for (size_t p = 0; p < run.params.size(); ++p) {
      const c10::IValue& grad = grads[step].toListRef()[p];
      run.params[p].mutable_grad() = grad.isNone() ? torch::Tensor() : grad.toTensor().clone();
    }
    run.optimizer->step();
    for (const auto& param : run.params) out.push_back(param.detach().clone());
  }
  for (const auto& param : run.params) append_state(out, *run.optimizer, param);
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: trajectory INPUT OUTPUT\n";
    return 2;
  }
  at::set_num_threads(1);  // as the Python side; for matrices this small a second thread only waits
  c10::impl::GenericDict out(c10::StringType::get(), c10::AnyType::get());
  const c10::IValue plans = read(argv[1]);  // owns everything that is referred to below
  for (const c10::IValue& plan : plans.toListRef()) {
    const std::string& name = entry(plan, "name").toStringRef();
    try {
      out.insert(name, trajectory(plan, std::string(argv[2]) + ".optimizer"));
    } catch (const c10::Error& error) {
      std::cerr << name << ": " << error.what_without_backtrace() << "\n";
      return 1;
    }
  }
  const std::vector<char> bytes = torch::pickle_save(out);
  std::ofstream(argv[2], std::ios::binary).write(bytes.data(), bytes.size());
  return 0;
}
