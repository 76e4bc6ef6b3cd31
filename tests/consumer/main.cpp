// Fits a small network with erlangen::Equivariant, to see that an installed Erlangen compiles,
// links, runs and learns.
#include <erlangen/erlangen.h>
#include <torch/torch.h>

#include <iostream>

int main() {
  torch::manual_seed(0);
  torch::nn::Sequential model(torch::nn::Linear(8, 32), torch::nn::ReLU(),
                              torch::nn::Linear(32, 4));
  erlangen::Equivariant optimizer(erlangen::param_groups(*model),
                                  erlangen::EquivariantOptions(1e-2).weight_decay(0.0));
  const auto x = torch::randn({256, 8});
  const auto y = x.slice(1, 0, 4).sin();
  double first = 0, last = 0;
  for (int i = 0; i < 50; ++i) {
    optimizer.zero_grad();
    const auto loss = torch::mse_loss(model->forward(x), y);
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (i == 0) first = last;
  }
  std::cout << "loss " << first << " -> " << last << "\n";
  if (!(last < 0.5 * first)) return 1;
  std::cout << "erlangen works\n";
}
