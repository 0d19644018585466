#include "vgen/nn/narrow.h"

#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include "vgen/kernels/columns.h"
#include "vgen/kernels/cpu_isa.h"

namespace vgen::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using NoAutocast = c10::impl::ExcludeDispatchKeyGuard;

constexpr auto kAutocastKey = c10::DispatchKey::AutocastCPU;

/// The narrow dtype that a product of x and y is to be made in and that the processor lacks; none
/// where LibTorch's operator serves.
std::optional<c10::ScalarType> lacking_dtype(const at::Tensor& x, const at::Tensor& y) {
  if (!x.is_cpu()) return std::nullopt;
  const bool is_cast = at::autocast::is_autocast_enabled(c10::kCPU);
  const auto dtype = is_cast ? at::autocast::get_autocast_dtype(c10::kCPU) : x.scalar_type();
  if (has_fast_products(dtype)) return std::nullopt;
  // Without autocast, dtypes that do not fit are LibTorch's to refuse.
  return is_cast || y.scalar_type() == dtype ? std::optional(dtype) : std::nullopt;
}

at::Tensor narrowed(const at::Tensor& x, c10::ScalarType dtype) {
  // A weight that autocast has cast before is not cast again.
  return at::autocast::cached_cast(dtype, x, c10::kCPU);
}

at::Tensor widened(const at::Tensor& x) { return x.to(c10::kFloat); }

/// x is narrow; weight and bias may be float32, which are multiplied as they are. A bias of no
/// elements is none: a Function takes no undefined tensors.
class WidenedLinear : public torch::autograd::Function<WidenedLinear> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& weight, const torch::Tensor& bias) {
    const NoAutocast guard(kAutocastKey);
    context->save_for_backward({x, weight});
    context->saved_data["bias_dtype"] = static_cast<int64_t>(bias.scalar_type());
    const at::Tensor added = bias.numel() > 0 ? widened(bias) : at::Tensor();
    return at::linear(widened(x), widened(weight), added).to(x.scalar_type());
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "linear has no second derivative");
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor &x = saved[0], &weight = saved[1];
    const auto dtype = x.scalar_type();
    const auto dy_MN = widened(gradients[0]).flatten(0, -2);
    variable_list result(3);
    if (context->needs_input_grad(0)) {
      result[0] = dy_MN.mm(widened(weight)).to(dtype).view(x.sizes());
    }
    if (context->needs_input_grad(1)) {
      result[1] = dy_MN.t().mm(widened(x).reshape({-1, x.size(-1)})).to(weight.scalar_type());
    }
    if (context->needs_input_grad(2)) {
      const auto bias_dtype = context->saved_data["bias_dtype"].toInt();
      result[2] = dy_MN.sum(0).to(static_cast<c10::ScalarType>(bias_dtype));
    }
    return result;
  }
};

/// The dtype of a product that autocast narrows on CUDA and that will be differentiated; none
/// elsewhere.
std::optional<c10::ScalarType> narrowing_dtype(const at::Tensor& x, const at::Tensor& weight) {
  if (!x.is_cuda() || !at::autocast::is_autocast_enabled(c10::kCUDA)) return std::nullopt;
  const bool is_differentiated =
      torch::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad());
  const auto dtype = at::autocast::get_autocast_dtype(c10::kCUDA);
  return is_differentiated && at::elementSize(dtype) == 2 ? std::optional(dtype) : std::nullopt;
}

at::Tensor sum_of_rows(const at::Tensor& x_MN) {
  return kernels::is_column_sums_input(x_MN) ? kernels::column_sums(x_MN)
                                             : x_MN.sum(0, /*keepdim=*/false, c10::kFloat);
}

class NarrowedLinear : public torch::autograd::Function<NarrowedLinear> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& weight,
                               const std::optional<torch::Tensor>& bias, int64_t narrow_dtype) {
    const NoAutocast guard(c10::DispatchKey::AutocastCUDA);
    const auto dtype = static_cast<c10::ScalarType>(narrow_dtype);
    const at::Tensor x_MK = x.to(dtype).reshape({-1, x.size(-1)}), weight_NK = weight.to(dtype);
    context->save_for_backward({x_MK, weight_NK});
    context->saved_data["sizes"] = x.sizes().vec();
    context->saved_data["x_dtype"] = static_cast<int64_t>(x.scalar_type());
    context->saved_data["weight_dtype"] = static_cast<int64_t>(weight.scalar_type());
    if (bias) context->saved_data["bias_dtype"] = static_cast<int64_t>(bias->scalar_type());
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = weight.size(0);
    return (bias ? at::addmm(bias->to(dtype), x_MK, weight_NK.t()) : x_MK.mm(weight_NK.t()))
        .view(sizes);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "linear has no second derivative");
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor &x_MK = saved[0], &weight_NK = saved[1];
    const auto dtype_of = [&](const char* name) {
      return static_cast<c10::ScalarType>(context->saved_data[name].toInt());
    };
    const torch::Tensor dy_MN =
        gradients[0].to(x_MK.scalar_type()).reshape({-1, weight_NK.size(0)});
    variable_list result(4);
    if (context->needs_input_grad(0)) {
      result[0] = dy_MN.mm(weight_NK)
                      .to(dtype_of("x_dtype"))
                      .view(context->saved_data["sizes"].toIntVector());
    }
    if (context->needs_input_grad(1)) {
      result[1] = dtype_of("weight_dtype") == c10::kFloat
                      ? at::mm(dy_MN.t(), x_MK, c10::kFloat)
                      : dy_MN.t().mm(x_MK).to(dtype_of("weight_dtype"));
    }
    const auto bias = context->saved_data.find("bias_dtype");
    if (bias != context->saved_data.end() && context->needs_input_grad(2)) {
      result[2] = sum_of_rows(dy_MN).to(dtype_of("bias_dtype"));
    }
    return result;
  }
};

at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const AttentionOptions& options) {
  return at::scaled_dot_product_attention(
      query, key, value, options.mask.defined() ? std::optional(options.mask) : std::nullopt,
      options.dropout_p, options.is_causal, options.scale, options.has_groups);
}

/// Computes a second time in the backward pass: of float32 nothing is kept.
class WidenedAttention : public torch::autograd::Function<WidenedAttention> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& query,
                               const torch::Tensor& key, const torch::Tensor& value,
                               const AttentionOptions& options) {
    const NoAutocast guard(kAutocastKey);
    context->save_for_backward({query, key, value, options.mask});
    context->saved_data["is_causal"] = options.is_causal;
    context->saved_data["scale"] = options.scale;
    context->saved_data["has_groups"] = options.has_groups;
    return attend(widened(query), widened(key), widened(value), options).to(query.scalar_type());
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "attention has no second derivative");
    const variable_list saved = context->get_saved_variables();
    const AttentionOptions options{.mask = saved[3],
                                   .is_causal = context->saved_data["is_causal"].toBool(),
                                   .scale = context->saved_data["scale"].toOptional<double>(),
                                   .has_groups = context->saved_data["has_groups"].toBool()};
    variable_list inputs;
    for (size_t i = 0; i < 3; ++i) inputs.push_back(widened(saved[i]).requires_grad_());
    torch::Tensor out;
    {
      const torch::AutoGradMode guard(/*enabled=*/true);
      out = attend(inputs[0], inputs[1], inputs[2], options);
    }
    variable_list result = torch::autograd::grad({out}, inputs, {widened(gradients[0])});
    for (auto& gradient : result) gradient = gradient.to(saved[0].scalar_type());
    result.emplace_back();
    return result;
  }
};

}  // namespace

bool has_fast_products(c10::ScalarType dtype) {
  if (dtype == c10::kBFloat16) return kernels::has_fast_bfloat16();
#if defined(__x86_64__)
  if (dtype == c10::kHalf) return __builtin_cpu_supports("avx512fp16");
#endif
  return true;
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (const auto dtype = narrowing_dtype(x, weight)) {
    return NarrowedLinear::apply(x, weight, bias.defined() ? std::optional(bias) : std::nullopt,
                                 static_cast<int64_t>(*dtype));
  }
  const auto dtype = lacking_dtype(x, weight);
  if (!dtype) return at::linear(x, weight, bias);
  const at::Tensor added = bias.defined() ? bias : at::empty({0}, x.options());
  const auto exact = [&](const at::Tensor& parameter) {
    return parameter.scalar_type() == c10::kFloat ? parameter : narrowed(parameter, *dtype);
  };
  return WidenedLinear::apply(narrowed(x, *dtype), exact(weight), exact(added));
}

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const AttentionOptions& options) {
  const auto dtype = lacking_dtype(query, key);
  if (!dtype || options.dropout_p > 0) return attend(query, key, value, options);
  AttentionOptions widened_options = options;
  const bool is_sum = options.mask.defined() && options.mask.scalar_type() != c10::kBool;
  if (is_sum) widened_options.mask = widened(options.mask);
  return WidenedAttention::apply(narrowed(query, *dtype), narrowed(key, *dtype),
                                 narrowed(value, *dtype), widened_options);
}

}  // namespace vgen::nn
