#pragma once
// How one training step is spread over processes. The trainer knows this interface alone, so its
// loop is the same for one process and for many.
//
// Every method is collective: each rank calls it, in the same order.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vgen/core/config.h"

namespace vgen::dist {

struct ParallelConfig {           // YAML section `parallel:`
  std::string strategy = "none";  ///< none: one process, one device
};
template <class Visitor>
void visit_fields(Visitor& v, ParallelConfig& c) {
  v("strategy", c.strategy, one_of({"none"}));
}

class Strategy {
 public:
  virtual ~Strategy() = default;

  virtual int64_t rank() const = 0;
  virtual int64_t world_size() const = 0;

  /// Adds the gradients of `loss`, a scalar, to those of the parameters. `sync_gradients` is true
  /// for the last micro-batch of a step: then the gradients become those of all ranks.
  virtual void backward(const at::Tensor& loss, bool sync_gradients) = 0;

  /// The L2 norm of all gradients together (a float32 scalar on their device; parameters without a
  /// gradient count as zero). Scales the gradients by max_norm / (norm + 1e-6) if that is below 1,
  /// as torch.nn.utils.clip_grad_norm_ does; max_norm 0 measures only.
  virtual at::Tensor clip_grad_norm(const std::vector<at::Tensor>& parameters, double max_norm) = 0;

  /// Mean over the ranks of a tensor that has the same shape on each.
  virtual at::Tensor mean_over_ranks(const at::Tensor& value) = 0;

  /// True on every rank if it is true on one: a signal reaches ranks at different times.
  virtual bool any_rank(bool value) = 0;
};

std::unique_ptr<Strategy> make_strategy(const ParallelConfig& config);

}  // namespace vgen::dist
