#include "vgen/train/grad_scaler.h"

#include <torch/torch.h>

namespace vgen::train {

namespace {
constexpr double kGrowthFactor = 2;
constexpr double kBackoffFactor = 0.5;
}  // namespace

GradScaler::GradScaler(bool is_enabled, c10::Device device, const GradScalerConfig& config)
    : is_enabled_(is_enabled),
      config_(config),
      scale_(at::full({}, is_enabled ? config.initial_scale : 1.0,
                      at::TensorOptions().dtype(at::kFloat).device(device))),
      growth_tracker_(at::zeros({}, at::TensorOptions().dtype(at::kInt).device(device))) {}

at::Tensor GradScaler::scale(const at::Tensor& loss) const {
  return is_enabled_ ? loss * scale_ : loss;
}

at::Tensor GradScaler::unscale(const std::vector<at::Tensor>& parameters) const {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& parameter : parameters) {
    if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  }
  auto found_inf = at::zeros_like(scale_);
  if (!gradients.empty()) {
    at::_amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, scale_.reciprocal());
  }
  return found_inf;
}

void GradScaler::update(const at::Tensor& found_inf) {
  if (!is_enabled_) return;
  const bool is_limited = config_.max_scale > 0;
  const at::Tensor old_scale = is_limited ? scale_.clone() : scale_;
  const at::Tensor old_tracker = is_limited ? growth_tracker_.clone() : growth_tracker_;
  at::_amp_update_scale_(scale_, growth_tracker_, found_inf, kGrowthFactor, kBackoffFactor,
                         config_.growth_interval);
  if (!is_limited) return;
  const at::Tensor is_over = old_scale > config_.max_scale;  // decided without waiting
  scale_.copy_(at::where(is_over, at::full_like(scale_, config_.max_scale), scale_));
  growth_tracker_.copy_(at::where(is_over, old_tracker, growth_tracker_));
}

double GradScaler::current_scale() const { return scale_.item<double>(); }

io::Json GradScaler::state() const {
  io::Json state = io::Json::object();
  state.set("scale", io::Json::number(scale_.item<double>()));
  state.set("growth_tracker", io::Json::number(growth_tracker_.item<int64_t>()));
  return state;
}

void GradScaler::load_state(const io::Json& state) {
  scale_.fill_(state.get_float("scale"));
  growth_tracker_.fill_(state.get_int("growth_tracker"));
}

}  // namespace vgen::train
