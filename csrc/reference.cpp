#include "reference.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/frexp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

namespace erlangen {

at::ScalarType compute_dtype(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

namespace reference {

at::Tensor power_of_two(const at::Tensor& exponent, at::ScalarType dtype) {
  if (dtype == at::kDouble) {
    return exponent.to(at::kLong).add(1023).bitwise_left_shift(52).view(at::kDouble);
  }
  return exponent.to(at::kInt).add(127).bitwise_left_shift(23).view(at::kFloat);
}

std::pair<at::Tensor, at::Tensor> prescale(const at::Tensor& x, at::IntArrayRef dims) {
  const at::Tensor absmax = at::linalg_vector_norm(x, INFINITY, dims, /*keepdim=*/true);
  // 2^-e itself must be a normal number.
  const int64_t largest = x.scalar_type() == at::kDouble ? 1022 : 126;
  const at::Tensor exponent = std::get<1>(at::frexp(absmax)).clamp(-largest, largest);
  return {x * power_of_two(-exponent, x.scalar_type()), exponent};
}

at::Tensor center(const at::Tensor& x) { return x - x.mean(-2, /*keepdim=*/true); }

at::Tensor row_norm(const at::Tensor& x) {
  const at::Tensor scaled = prescale(x, {-1}).first;
  const at::Tensor norm = at::linalg_vector_norm(scaled, 2, {-1}, /*keepdim=*/true);
  return scaled / norm.masked_fill(norm.eq(0.0), 1.0);
}

namespace {

// Philox4x32-10 (Salmon et al. 2011) on tensors of uint32 values held as int64: four words for
// each counter {counter, step, tensor, 0} under the key `seed`.
std::array<at::Tensor, 4> philox(const at::Tensor& counter, const ApplyArgs& key_args) {
  constexpr int64_t kMask = 0xFFFFFFFF;
  const at::Tensor zeros = at::zeros_like(counter);
  std::array<at::Tensor, 4> c = {
      counter.bitwise_and(kMask), counter.bitwise_right_shift(32),
      key_args.step.defined() ? zeros.add(key_args.step.to(at::kLong).bitwise_and(kMask)) : zeros,
      zeros.add(key_args.tensor & kMask)};
  uint64_t key0 = static_cast<uint64_t>(key_args.seed) & kMask;
  uint64_t key1 = static_cast<uint64_t>(key_args.seed) >> 32;
  // The product of two uint32 needs 64 unsigned bits; int64 wraps to the same bits, and the mask
  // after the shift takes away the copies of the sign.
  const auto high = [](const at::Tensor& product) {
    return product.bitwise_right_shift(32).bitwise_and(kMask);
  };
  const auto low = [](const at::Tensor& product) { return product.bitwise_and(kMask); };
  for (int round = 0; round < 10; ++round) {
    const at::Tensor product0 = c[0] * int64_t{0xD2511F53}, product2 = c[2] * int64_t{0xCD9E8D57};
    c = {high(product2).bitwise_xor(c[1]).bitwise_xor(static_cast<int64_t>(key0)), low(product2),
         high(product0).bitwise_xor(c[3]).bitwise_xor(static_cast<int64_t>(key1)), low(product0)};
    key0 = (key0 + 0x9E3779B9) & kMask;
    key1 = (key1 + 0xBB67AE85) & kMask;
  }
  return c;
}

}  // namespace

at::Tensor stochastic_round(const at::Tensor& x, const ApplyArgs& key) {
  const int64_t n = x.numel();
  const auto words = philox(at::arange((n + 3) / 4, x.options().dtype(at::kLong)), key);
  const at::Tensor noise = at::stack({words[0], words[1], words[2], words[3]}, -1)
                               .flatten()
                               .narrow(0, 0, n)
                               .bitwise_and(0xFFFF)
                               .to(at::kInt)
                               .view(x.sizes());
  const at::Tensor bits = x.contiguous().view(at::kInt);
  // Clears the 16 bits that bfloat16 has not: the conversion below is then exact.
  const at::Tensor rounded =
      bits.add(noise).bitwise_and(static_cast<int64_t>(~0xFFFF)).view(at::kFloat);
  return at::where(x.isfinite(), rounded, x).to(at::kBFloat16);
}

namespace {

// lr·weight_decay and lr·update_scale as float64 tensors beside p: as exact as the numbers'
// products.
std::pair<at::Tensor, at::Tensor> factors(const ApplyArgs& args, const at::Tensor& p) {
  const auto options = p.options().dtype(at::kDouble);
  const auto wide = [&](const at::Tensor& scalar, double value) {
    return scalar.defined() ? scalar.to(at::kDouble) : at::full({}, value, options);
  };
  const at::Tensor lr = wide(args.lr_tensor, args.lr);
  return {lr * wide(args.weight_decay_tensor, args.weight_decay), lr * args.update_scale};
}

}  // namespace

void apply_update(const at::Tensor& param, const at::Tensor& update, const at::Tensor& rows,
                  const ApplyArgs& args) {
  const at::Tensor p = param.to(compute_dtype(param));  // param itself where the types agree
  const bool in_place = p.is_same(param) && !rows.defined();
  at::Tensor decayed = p;
  if (args.cautious) {
    // By signs: the product of two small numbers would vanish.
    decayed = p * (p.sign() * update.sign()).gt(0.0);
  }
  // Both parts leave p in one difference: 1 − lr·weight_decay is too close to 1 for float32.
  at::Tensor change;
  if (args.lr_tensor.defined() || args.weight_decay_tensor.defined()) {
    const auto [decay, length] = factors(args, p);
    change = (update * length.to(p.scalar_type())).add_(decayed * decay.to(p.scalar_type()));
  } else {
    change = (update * (args.lr * args.update_scale)).add_(decayed * (args.lr * args.weight_decay));
  }
  if (in_place) {
    p.sub_(change);
    return;
  }
  at::Tensor next = p - change;
  if (rows.defined()) next = at::where(rows, next, p);
  if (args.stochastic_rounding) {
    next = stochastic_round(next, args);
  }
  param.copy_(next);
}

namespace {

// 1 − β^step in x's type. The CPU's number is read; elsewhere that would wait for the device.
at::Tensor bias_correction(double beta, const at::Tensor& step, const at::Tensor& x) {
  const at::Tensor power =
      step.is_cpu() ? at::scalar_tensor(std::pow(beta, static_cast<double>(step.item<float>())),
                                        at::TensorOptions(at::kDouble))
                    : at::pow(beta, step.to(at::kDouble));
  return (1.0 - power).to(x.scalar_type());
}

}  // namespace

at::Tensor adam_direction(const at::Tensor& grad, const at::Tensor& exp_avg,
                          const at::Tensor& exp_avg_sq, double beta1, double beta2, double eps,
                          const at::Tensor& step) {
  const auto dtype = grad.scalar_type();
  const at::Tensor m = exp_avg.to(dtype).lerp(grad, 1.0 - beta1);
  const at::Tensor v = (exp_avg_sq.to(dtype) * beta2).addcmul_(grad, grad, 1.0 - beta2);
  exp_avg.copy_(m);
  exp_avg_sq.copy_(v);
  const at::Tensor root = v.div(bias_correction(beta2, step, v)).sqrt_();
  return m.div(bias_correction(beta1, step, m)).div_(root.add_(eps));
}

}  // namespace reference
}  // namespace erlangen
