#include "vgen/dist/strategy.h"

#include <torch/torch.h>

namespace vgen::dist {

namespace {

/// One process, one device.
class SingleProcess : public Strategy {
 public:
  int64_t rank() const override { return 0; }
  int64_t world_size() const override { return 1; }

  void backward(const at::Tensor& loss, bool /*sync_gradients*/) override { loss.backward(); }

  at::Tensor clip_grad_norm(const std::vector<at::Tensor>& parameters, double max_norm) override {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& parameter : parameters) {
      if (parameter.grad().defined()) gradients.push_back(parameter.grad());
    }
    if (gradients.empty()) return at::zeros({});
    const auto norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients)), 2);
    if (max_norm > 0) {
      at::_foreach_mul_(gradients, at::clamp_max(max_norm / (norm + 1e-6), 1.0));
    }
    return norm;
  }

  at::Tensor mean_over_ranks(const at::Tensor& value) override { return value; }
  bool any_rank(bool value) override { return value; }
};

}  // namespace

std::unique_ptr<Strategy> make_strategy(const ParallelConfig& config) {
  require(config.strategy == "none", ErrorCode::kInvalidArgument, "parallel.strategy is '",
          config.strategy, "', expected none");
  return std::make_unique<SingleProcess>();
}

}  // namespace vgen::dist
