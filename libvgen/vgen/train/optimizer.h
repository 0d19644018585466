#pragma once
// Adam and AdamW through LibTorch's fused kernels, on the CPU and on CUDA.

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/config.h"
#include "vgen/train/schedule.h"

namespace vgen::train {

using checkpoint::NamedTensors;

/// Parameters whose name matches `match` (a shell pattern: "*.bias", "encoder.*") get other rates.
/// What a rule does not name stays as it is without the rule.
struct ParamRule {  // YAML list `optimizer.rules:`
  std::string match;
  double lr_scale = 1;
  double weight_decay = -1;  ///< in any case; -1: as the optimizer has it for these parameters
};
template <class Visitor>
void visit_fields(Visitor& v, ParamRule& c) {
  v("match", c.match);
  v("lr_scale", c.lr_scale, at_least(0));
  v("weight_decay", c.weight_decay, at_least(-1));
}

struct OptimizerConfig {      // YAML section `optimizer:`
  std::string kind = "adam";  ///< adam: decay as L2 on the gradient; adamw: decoupled
  double lr = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  int64_t decay_min_dims = 0;  ///< parameters with fewer dimensions have no decay (2: none on
                               ///< biases and norms)
  std::vector<std::string> no_decay = {};  ///< nor have those whose name contains one of these
  std::vector<ParamRule> rules = {};       ///< the first that matches a name counts
};
template <class Visitor>
void visit_fields(Visitor& v, OptimizerConfig& c) {
  v("kind", c.kind, one_of({"adam", "adamw"}));
  v("lr", c.lr, at_least(0));
  v("beta1", c.beta1, between(0, 1));
  v("beta2", c.beta2, between(0, 1));
  v("eps", c.eps, more_than(0));
  v("weight_decay", c.weight_decay, at_least(0));
  v("decay_min_dims", c.decay_min_dims, at_least(0));
  v("no_decay", c.no_decay);
  v("rules", c.rules);
}

/// The optimizer of one phase.
class Optimizer {
 public:
  /// Parameters as named_parameters() gives them, or parts of them, which may be empty: rules see
  /// the whole. Throws Error(kInvalidArgument) for a rule that matches no parameter, and for a
  /// weight decay of one that is below 0 and not -1.
  Optimizer(const OptimizerConfig& config, const NamedTensors& parameters);
  ~Optimizer();
  Optimizer(Optimizer&&) noexcept;

  void zero_grad();

  /// One update of every parameter that has a gradient. Where `found_inf` (a float scalar) is not
  /// 0, nothing changes, and the device is not waited for.
  void step(const Rates& rates, const std::optional<at::Tensor>& found_inf = std::nullopt);

  /// In the order of the constructor.
  const std::vector<at::Tensor>& parameters() const;

  /// "exp_avg.NAME", "exp_avg_sq.NAME" (parts where the parameter is one) and "step" (one count per
  /// parameter, the same on all ranks): shared with the optimizer, so loading into them restores
  /// it.
  NamedTensors state(const std::string& prefix) const;

 private:
  struct Group;
  OptimizerConfig config_;
  std::vector<Group> groups_;
  std::vector<at::Tensor> parameters_;
  NamedTensors exp_avg_, exp_avg_sq_;  // under the names of the parameters
  at::Tensor steps_;                   // float32 (N): of each parameter
};

}  // namespace vgen::train
