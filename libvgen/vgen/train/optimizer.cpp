#include "vgen/train/optimizer.h"

#include <fnmatch.h>
#include <torch/torch.h>

#include <algorithm>
#include <map>

namespace vgen::train {

/// Parameters with the same rates.
struct Optimizer::Group {
  double lr_scale = 1;
  double weight_decay = 0;
  std::vector<size_t> members;  ///< indices into the lists of the optimizer
};

namespace {

struct GroupRates {
  double lr_scale = 1;
  double weight_decay = 0;
  auto operator<=>(const GroupRates&) const = default;
};

// Strides of axes of length 1 say nothing.
bool is_laid_out_alike(const at::Tensor& a, const at::Tensor& b) {
  for (int64_t axis = 0; axis < a.dim(); ++axis) {
    if (a.size(axis) > 1 && a.stride(axis) != b.stride(axis)) return false;
  }
  return a.sizes() == b.sizes();
}

// What parameters without a rule have.
double weight_decay_of(const OptimizerConfig& config, const checkpoint::NamedTensor& parameter) {
  const int64_t num_dims = parameter.is_part() ? static_cast<int64_t>(parameter.whole_sizes.size())
                                               : parameter.tensor.dim();
  const bool has_decay = num_dims >= config.decay_min_dims &&
                         std::ranges::none_of(config.no_decay, [&](const std::string& part) {
                           return parameter.name.find(part) != std::string::npos;
                         });
  return has_decay ? config.weight_decay : 0;
}

GroupRates rates_of(const OptimizerConfig& config, const checkpoint::NamedTensor& parameter,
                    std::vector<bool>& is_rule_used) {
  GroupRates rates{1, weight_decay_of(config, parameter)};
  for (size_t i = 0; i < config.rules.size(); ++i) {
    const ParamRule& rule = config.rules[i];
    if (fnmatch(rule.match.c_str(), parameter.name.c_str(), 0) != 0) continue;
    is_rule_used[i] = true;
    rates.lr_scale = rule.lr_scale;
    if (rule.weight_decay >= 0) rates.weight_decay = rule.weight_decay;
    break;
  }
  return rates;
}

}  // namespace

Optimizer::Optimizer(const OptimizerConfig& config, const NamedTensors& parameters)
    : config_(config) {
  require(!parameters.empty(), ErrorCode::kInvalidArgument, "optimizer: no parameters");
  const at::NoGradGuard no_grad;
  std::map<GroupRates, size_t> group_of;
  std::vector<bool> is_rule_used(config.rules.size());
  for (const auto& parameter : parameters) {
    const GroupRates rates = rates_of(config, parameter, is_rule_used);
    const auto [place, is_new] = group_of.emplace(rates, groups_.size());
    if (is_new) groups_.push_back({rates.lr_scale, rates.weight_decay, {}});
    groups_[place->second].members.push_back(parameters_.size());
    parameters_.push_back(parameter.tensor);
    for (NamedTensors* average : {&exp_avg_, &exp_avg_sq_}) {
      average->push_back(parameter);
      average->back().tensor = at::zeros_like(parameter.tensor);  // preserves the memory format
    }
  }
  for (size_t i = 0; i < is_rule_used.size(); ++i) {
    const ParamRule& rule = config.rules[i];
    require(is_rule_used[i], ErrorCode::kInvalidArgument, "optimizer.rules.", i, ".match '",
            rule.match, "' matches no parameter");
    require(rule.weight_decay >= 0 || rule.weight_decay == -1, ErrorCode::kInvalidArgument,
            "optimizer.rules.", i, ".weight_decay is ", rule.weight_decay,
            "; expected at least 0, or -1 for what these parameters have without the rule");
  }
  steps_ = at::zeros({static_cast<int64_t>(parameters_.size())},
                     at::TensorOptions().dtype(at::kFloat).device(parameters_[0].device()));
}

Optimizer::~Optimizer() = default;
Optimizer::Optimizer(Optimizer&&) noexcept = default;

const std::vector<at::Tensor>& Optimizer::parameters() const { return parameters_; }

void Optimizer::zero_grad() {
  for (at::Tensor& parameter : parameters_) parameter.mutable_grad() = at::Tensor();
}

void Optimizer::step(const Rates& rates, const std::optional<at::Tensor>& found_inf) {
  const at::NoGradGuard no_grad;
  for (const Group& group : groups_) {
    std::vector<at::Tensor> parameters, gradients, exp_avg, exp_avg_sq, steps, counted;
    for (const size_t i : group.members) {
      const at::Tensor& gradient = parameters_[i].grad();
      if (!gradient.defined()) continue;
      counted.push_back(steps_[static_cast<int64_t>(i)]);
      if (gradient.numel() == 0) continue;
      // The fused kernel walks the memory of all four alike.
      TORCH_INTERNAL_ASSERT(is_laid_out_alike(gradient, parameters_[i]));
      parameters.push_back(parameters_[i]);
      gradients.push_back(gradient);
      exp_avg.push_back(exp_avg_[i].tensor);
      exp_avg_sq.push_back(exp_avg_sq_[i].tensor);
      steps.push_back(counted.back());
    }
    if (counted.empty()) continue;
    at::_foreach_add_(counted, 1);
    const auto update = [&](const auto&... arguments) {
      config_.kind == "adamw" ? at::_fused_adamw_(arguments...) : at::_fused_adam_(arguments...);
    };
    if (!parameters.empty()) {
      update(parameters, gradients, exp_avg, exp_avg_sq,
             /*max_exp_avg_sqs=*/std::vector<at::Tensor>(), steps,
             config_.lr * rates.lr * group.lr_scale, config_.beta1, config_.beta2,
             group.weight_decay * rates.weight_decay, config_.eps, /*amsgrad=*/false,
             /*maximize=*/false, /*grad_scale=*/std::optional<at::Tensor>(), found_inf);
    }
    // quirk: LibTorch's fused kernels do not count their writes; whoever keeps what is derived from
    // a parameter (nn/weight_cache.h) would not see them.
    for (const at::Tensor& parameter : parameters) parameter.unsafeGetTensorImpl()->bump_version();
    if (found_inf) {
      at::_foreach_sub_(counted, std::vector<at::Tensor>(counted.size(), *found_inf));
    }
  }
}

NamedTensors Optimizer::state(const std::string& prefix) const {
  NamedTensors tensors{{prefix + "step", steps_}};
  for (size_t i = 0; i < parameters_.size(); ++i) {
    for (const auto& [kind, averages] :
         {std::pair("exp_avg.", &exp_avg_), std::pair("exp_avg_sq.", &exp_avg_sq_)}) {
      tensors.push_back((*averages)[i]);
      tensors.back().name = str_cat(prefix, kind, (*averages)[i].name);
    }
  }
  return tensors;
}

}  // namespace vgen::train
