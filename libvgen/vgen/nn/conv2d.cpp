#include "vgen/nn/conv2d.h"

#include <cmath>

#include "vgen/kernels/cpu_isa.h"
#include "vgen/kernels/group_norm.h"
#include "vgen/kernels/winograd.h"
#include "vgen/nn/skip_init.h"

namespace vgen::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto kLast = torch::MemoryFormat::ChannelsLast;
constexpr size_t kCastSlot = 0;

/// Whether bf16 is multiplied in tiles (AMX), several times faster than float32.
bool has_bf16_tiles() {
#if defined(__x86_64__)
  return kernels::best_cpu_isa() >= kernels::CpuIsa::kAmx;
#else
  return true;
#endif
}

/// Whether oneDNN convolves that dtype at least as fast as float32.
bool is_native(torch::ScalarType dtype) {
  return dtype == torch::kFloat32 || (dtype == torch::kBFloat16 && kernels::has_fast_bfloat16());
}

/// One convolution on the CPU, channels-last.
struct CpuConv {
  Conv2dOptions options;
  torch::Tensor weight, bias_O;  ///< float32
  WeightCache* cache = nullptr;  ///< null: the weight is being trained, nothing is kept
  const WeightHook* on_weight_kept = nullptr;
  bool is_upsampled = false;

  bool use_winograd(const torch::Tensor& x_BCHW) const {
    const auto dtype = x_BCHW.scalar_type();
    const bool is_plain = options.kernel_size == 3 && options.stride == 1 && options.padding == 1;
    if (!is_plain || !kernels::is_winograd_input(x_BCHW) ||
        (dtype == torch::kBFloat16 && has_bf16_tiles())) {
      return false;
    }
    // Below this transforming the weights costs more than is saved.
    const int64_t scale = is_upsampled ? 2 : 1;
    const int64_t tiles =
        x_BCHW.size(0) * ((x_BCHW.size(2) * scale + 3) / 4) * ((x_BCHW.size(3) * scale + 3) / 4);
    return tiles * 4096 >= options.in_channels * options.out_channels;
  }

  torch::Tensor cast_weight(torch::ScalarType dtype) const {
    if (dtype == weight.scalar_type()) return weight;
    const auto cast = [dtype](const torch::Tensor& w) {
      return w.to(w.device(), dtype, /*non_blocking=*/false, /*copy=*/false, kLast);
    };
    if (cache == nullptr) return cast(weight);
    const torch::Tensor kept = cache->get(weight, kCastSlot, [&](const torch::Tensor& w) {
      const torch::Tensor narrow = cast(w);
      if (*on_weight_kept) (*on_weight_kept)(w);
      return narrow;
    });
    return kept.scalar_type() == dtype ? kept : cast(weight);
  }

  torch::IntArrayRef padding() const {
    static constexpr int64_t kAtEnd[] = {2, 2};
    return options.is_padded_at_end ? torch::IntArrayRef(kAtEnd)
                                    : torch::IntArrayRef(&options.padding, 1);
  }

  torch::Tensor enlarged(const torch::Tensor& x_BCHW) const {
    if (!is_upsampled) return x_BCHW;
    return at::upsample_nearest2d(x_BCHW, {2 * x_BCHW.size(2), 2 * x_BCHW.size(3)});
  }

  torch::Tensor forward(const torch::Tensor& x_BCHW, const torch::Tensor& residual_BOHW) const {
    if (use_winograd(x_BCHW)) {
      return kernels::winograd_conv(x_BCHW, weight, bias_O, residual_BOHW,
                                    {.is_upsampled = is_upsampled});
    }
    const auto dtype = x_BCHW.scalar_type();
    const auto compute_dtype = is_native(dtype) ? dtype : torch::kFloat32;
    torch::Tensor y_BOHW =
        at::conv2d(enlarged(x_BCHW).to(compute_dtype), cast_weight(compute_dtype),
                   bias_O.defined() ? bias_O.to(compute_dtype) : bias_O, options.stride, padding());
    if (options.is_padded_at_end) {
      // Two zeros on each side are one row too many above and one column too many to the left.
      y_BOHW = y_BOHW.narrow(2, 1, x_BCHW.size(2) / 2)
                   .narrow(3, 1, x_BCHW.size(3) / 2)
                   .contiguous(kLast);
    }
    if (residual_BOHW.defined()) y_BOHW.add_(residual_BOHW);
    return y_BOHW.to(dtype).contiguous(kLast);
  }

  struct Gradients {
    torch::Tensor x_BCHW, weight, bias_O;
  };
  /// Gradients that are not wanted stay undefined.
  Gradients backward(const torch::Tensor& x_BCHW, torch::Tensor gradient_BOHW, bool want_x,
                     bool want_weight) const {
    Gradients result;
    if (want_weight && bias_O.defined() && kernels::is_group_norm_input(gradient_BOHW)) {
      result.bias_O = kernels::channel_sums(gradient_BOHW);
    } else if (want_weight && bias_O.defined()) {
      result.bias_O = gradient_BOHW.sum({0, 2, 3}, false, torch::kFloat32);
    }
    torch::Tensor enlarged_gradient_BCHW;
    if (use_winograd(x_BCHW)) {
      if (want_weight) {
        result.weight = kernels::winograd_weight_gradient(x_BCHW, gradient_BOHW,
                                                          {.is_upsampled = is_upsampled});
      }
      if (want_x) {
        enlarged_gradient_BCHW =
            kernels::winograd_conv(gradient_BOHW, weight, {}, {}, {.is_flipped = true});
      }
    } else {
      const auto dtype = x_BCHW.scalar_type();
      const auto compute_dtype = is_native(dtype) ? dtype : torch::kFloat32;
      if (options.is_padded_at_end) {
        gradient_BOHW =
            at::constant_pad_nd(gradient_BOHW, {1, x_BCHW.size(3) % 2, 1, x_BCHW.size(2) % 2});
      }
      auto [dx, dw, db] = at::convolution_backward(
          gradient_BOHW.to(compute_dtype), enlarged(x_BCHW).to(compute_dtype),
          cast_weight(compute_dtype), c10::nullopt, {options.stride, options.stride},
          {padding()[0], padding()[0]}, {1, 1}, /*transposed=*/false, {0, 0}, 1,
          {want_x, want_weight, false});
      if (want_weight) result.weight = dw.to(torch::kFloat32).contiguous();
      if (want_x) enlarged_gradient_BCHW = dx.to(dtype).contiguous(kLast);
    }
    if (want_x) {
      result.x_BCHW = !is_upsampled ? enlarged_gradient_BCHW
                                    : at::upsample_nearest2d_backward(
                                          enlarged_gradient_BCHW,
                                          {2 * x_BCHW.size(2), 2 * x_BCHW.size(3)}, x_BCHW.sizes())
                                          .contiguous(kLast);
    }
    return result;
  }
};

/// conv(silu(norm(x))) + residual with the gradients of all; see Conv2dExtras.
class ConvFunction : public torch::autograd::Function<ConvFunction> {
 public:
  struct Settings {
    CpuConv conv;
    int64_t groups = 0;
    double eps = 0;
    bool is_input_spent = false;
  };

  using Optional = std::optional<torch::Tensor>;  ///< absent where undefined

  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x_BCHW,
                               const torch::Tensor& weight, const Optional& bias,
                               const Optional& norm_weight, const Optional& norm_bias,
                               const Optional& residual, const Settings& settings) {
    const torch::Tensor bias_O = bias.value_or(torch::Tensor());
    const torch::Tensor norm_weight_C = norm_weight.value_or(torch::Tensor());
    const torch::Tensor norm_bias_C = norm_bias.value_or(torch::Tensor());
    const torch::Tensor residual_BOHW = residual.value_or(torch::Tensor());
    kernels::GroupNormStats stats;
    torch::Tensor input_BCHW = x_BCHW;
    if (norm_weight_C.defined()) {
      stats = kernels::group_norm_stats(x_BCHW, settings.groups, settings.eps);
      input_BCHW =
          kernels::group_norm_apply(x_BCHW, stats,
                                    {.weight_C = norm_weight_C,
                                     .bias_C = norm_bias_C,
                                     .has_silu = true,
                                     .is_in_place = settings.is_input_spent && context == nullptr});
    }
    if (context != nullptr) {
      context->save_for_backward(
          {x_BCHW, weight, bias_O, norm_weight_C, norm_bias_C, stats.mean_BG, stats.rstd_BG});
      const Conv2dOptions& options = settings.conv.options;
      context->saved_data["options"] = std::vector<int64_t>{options.in_channels,
                                                            options.out_channels,
                                                            options.kernel_size,
                                                            options.stride,
                                                            options.padding,
                                                            options.is_padded_at_end,
                                                            settings.conv.is_upsampled,
                                                            residual_BOHW.defined()};
    }
    return settings.conv.forward(input_BCHW, residual_BOHW);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "conv2d has no second derivative");
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor &x_BCHW = saved[0], &norm_weight_C = saved[3], &norm_bias_C = saved[4];
    const kernels::GroupNormStats stats{saved[5], saved[6]};
    const auto o = context->saved_data["options"].toIntVector();
    const CpuConv conv{.options = {.in_channels = o[0],
                                   .out_channels = o[1],
                                   .kernel_size = o[2],
                                   .stride = o[3],
                                   .padding = o[4],
                                   .is_padded_at_end = o[5] != 0},
                       .weight = saved[1].detach(),
                       .bias_O = saved[2],
                       .is_upsampled = o[6] != 0};
    const torch::Tensor gradient_BOHW = gradients[0].to(x_BCHW.scalar_type()).contiguous(kLast);
    const bool has_norm = norm_weight_C.defined();
    // Edges are counted over the tensors that were given. Asking the tensors instead would count
    // those that were frozen for the forward pass alone.
    const size_t norm_edge = saved[2].defined() ? 3 : 2;
    const bool want_weight =
        context->needs_input_grad(1) || (saved[2].defined() && context->needs_input_grad(2));
    const bool want_x =
        context->needs_input_grad(0) || (has_norm && context->needs_input_grad(norm_edge));
    const kernels::GroupNormParameters norm{norm_weight_C, norm_bias_C, /*has_silu=*/true};
    const torch::Tensor input_BCHW =
        has_norm && want_weight ? kernels::group_norm_apply(x_BCHW, stats, norm) : x_BCHW;
    auto result = conv.backward(input_BCHW, gradient_BOHW, want_x, want_weight);
    kernels::GroupNormGradients norm_result;
    if (has_norm && want_x) {
      norm_result = kernels::group_norm_gradient(x_BCHW, result.x_BCHW, stats, norm);
      result.x_BCHW = norm_result.x_BCHW;
    }
    return {result.x_BCHW,
            result.weight,
            result.bias_O,
            norm_result.weight_C,
            norm_result.bias_C,
            o[7] != 0 ? gradient_BOHW : torch::Tensor(),
            {}};
  }
};

/// y + bias + residual in the place of y; the residual may be absent.
class AddToChannelsFunction : public torch::autograd::Function<AddToChannelsFunction> {
 public:
  using Optional = std::optional<torch::Tensor>;

  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& y_BOHW,
                               const torch::Tensor& bias_O, const Optional& residual_BOHW) {
    kernels::add_to_channels(y_BOHW, bias_O, residual_BOHW.value_or(torch::Tensor()));
    context->mark_dirty({y_BOHW});
    context->saved_data["bias_dtype"] = static_cast<int64_t>(bias_O.scalar_type());
    context->saved_data["has_residual"] = residual_BOHW.has_value();
    return y_BOHW;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "conv2d has no second derivative");
    const torch::Tensor gradient_BOHW = gradients[0].contiguous(kLast);
    torch::Tensor bias_O;
    if (context->needs_input_grad(1)) {
      const auto dtype = static_cast<c10::ScalarType>(context->saved_data["bias_dtype"].toInt());
      bias_O = kernels::channel_sums(gradient_BOHW).to(dtype);
    }
    const bool has_residual = context->saved_data["has_residual"].toBool();
    return {gradient_BOHW, bias_O, has_residual ? gradient_BOHW : torch::Tensor()};
  }
};

}  // namespace

Conv2dOptions conv3x3(int64_t in_channels, int64_t out_channels) {
  return {.in_channels = in_channels, .out_channels = out_channels};
}

Conv2dOptions conv1x1(int64_t in_channels, int64_t out_channels) {
  return {.in_channels = in_channels, .out_channels = out_channels, .kernel_size = 1, .padding = 0};
}

Conv2dImpl::Conv2dImpl(const Conv2dOptions& options)
    : options_(options), cache_(std::make_unique<WeightCache>()) {
  const int64_t kernel = options.kernel_size;
  const double bound = 1 / std::sqrt(static_cast<double>(options.in_channels * kernel * kernel));
  weight = register_parameter(
      "weight", torch::empty({options.out_channels, options.in_channels, kernel, kernel}));
  if (!SkipInit::is_active()) {
    const torch::NoGradGuard no_grad;
    weight.uniform_(-bound, bound);
  }
  if (options.use_bias) {
    bias = register_parameter("bias", torch::empty({options.out_channels}).uniform_(-bound, bound));
  }
}

bool Conv2dImpl::is_weight_kept() const {
  return !weight.requires_grad() || (!torch::GradMode::is_enabled() && !is_training());
}

torch::Tensor Conv2dImpl::forward_with(const torch::Tensor& x_BCHW, const Conv2dExtras& extras) {
  const bool is_fused =
      x_BCHW.is_cpu() && x_BCHW.dim() == 4 && x_BCHW.numel() > 0 &&
      (x_BCHW.scalar_type() == torch::kFloat32 || x_BCHW.scalar_type() == torch::kBFloat16);
  if (!is_fused) return forward_composed(x_BCHW, extras);
  const ConvFunction::Settings settings{
      .conv = {.options = options_,
               .weight = weight.detach(),
               .bias_O = bias.defined() ? bias.detach() : bias,
               .cache = is_weight_kept() ? cache_.get() : nullptr,
               .on_weight_kept = &on_weight_kept_,
               .is_upsampled = extras.is_upsampled},
      .groups = extras.norm_silu == nullptr ? 0 : extras.norm_silu->groups(),
      .eps = extras.norm_silu == nullptr ? 0 : extras.norm_silu->eps(),
      .is_input_spent = extras.is_input_spent};
  torch::Tensor norm_weight_C, norm_bias_C;
  if (extras.norm_silu != nullptr) {
    norm_weight_C = extras.norm_silu->weight;
    norm_bias_C = extras.norm_silu->bias;
  }
  const torch::Tensor x = x_BCHW.contiguous(kLast);
  const torch::Tensor residual_BOHW =
      extras.residual_BOHW.defined() ? extras.residual_BOHW.contiguous(kLast) : torch::Tensor();
  const bool is_differentiated =
      torch::GradMode::is_enabled() &&
      (x.requires_grad() || weight.requires_grad() || (bias.defined() && bias.requires_grad()) ||
       (norm_weight_C.defined() && norm_weight_C.requires_grad()) ||
       (residual_BOHW.defined() && residual_BOHW.requires_grad()));
  const auto optional = [](const torch::Tensor& tensor) {
    return tensor.defined() ? std::optional<torch::Tensor>(tensor) : std::nullopt;
  };
  const auto call = [&](auto&& function) {
    return function(x, weight, optional(bias), optional(norm_weight_C), optional(norm_bias_C),
                    optional(residual_BOHW), settings);
  };
  if (is_differentiated) {
    return call([](const auto&... arguments) { return ConvFunction::apply(arguments...); });
  }
  return call(
      [](const auto&... arguments) { return ConvFunction::forward(nullptr, arguments...); });
}

torch::Tensor Conv2dImpl::forward_composed(const torch::Tensor& x_BCHW,
                                           const Conv2dExtras& extras) {
  const auto dtype = x_BCHW.scalar_type();
  const bool is_last = x_BCHW.is_cuda() && at::elementSize(dtype) == 2;
  torch::Tensor input_BCHW = is_last ? x_BCHW.contiguous(kLast) : x_BCHW;
  if (extras.norm_silu != nullptr) input_BCHW = extras.norm_silu->forward_silu(input_BCHW);
  if (extras.is_upsampled) {
    input_BCHW = at::upsample_nearest2d(input_BCHW, {2 * x_BCHW.size(2), 2 * x_BCHW.size(3)});
  }
  if (options_.is_padded_at_end) input_BCHW = at::constant_pad_nd(input_BCHW, {0, 1, 0, 1});
  const auto cast = [&](const torch::Tensor& w) {
    return is_last ? w.to(w.device(), dtype, /*non_blocking=*/false, /*copy=*/false, kLast)
                   : w.to(dtype);
  };
  const auto cast_once = [&](const torch::Tensor& w) {
    const torch::Tensor narrow = cast(w);
    if (on_weight_kept_) on_weight_kept_(w);
    return narrow;
  };
  const torch::Tensor cast_weight = is_weight_kept() && dtype != weight.scalar_type()
                                        ? cache_->get(weight, kCastSlot, cast_once)
                                        : cast(weight);
  const auto convolved = [&](const torch::Tensor& bias_O) {
    return at::conv2d(input_BCHW, cast_weight.scalar_type() == dtype ? cast_weight : cast(weight),
                      bias_O, options_.stride, options_.is_padded_at_end ? 0 : options_.padding);
  };
  const torch::Tensor& residual_BOHW = extras.residual_BOHW;
  if (is_last && bias.defined()) {
    const torch::Tensor y_BOHW = convolved({});
    if (kernels::is_group_norm_input(y_BOHW)) {
      std::optional<torch::Tensor> residual;
      if (residual_BOHW.defined()) residual = residual_BOHW.to(dtype).contiguous(kLast);
      return AddToChannelsFunction::apply(y_BOHW, bias, residual);
    }
    const torch::Tensor sum_BOHW = y_BOHW + bias.to(dtype).view({-1, 1, 1});
    return residual_BOHW.defined() ? sum_BOHW + residual_BOHW : sum_BOHW;
  }
  const torch::Tensor y_BOHW = convolved(bias.defined() ? bias.to(dtype) : bias);
  return residual_BOHW.defined() ? y_BOHW + residual_BOHW : y_BOHW;
}

}  // namespace vgen::nn
