#include "vgen/nn/batch_ranks.h"

#include <torch/torch.h>

namespace vgen::nn {
namespace {

using torch::autograd::variable_list;

at::Tensor averaged(BatchRanks& ranks, const at::Tensor& value) {
  const at::NoGradGuard no_grad;
  const at::Tensor mean = value.detach().clone(at::MemoryFormat::Contiguous);
  ranks.sum(mean);
  return mean.div_(static_cast<double>(ranks.size()));
}

/// The mean over the ranks is its own adjoint.
class Averaging : public torch::autograd::Node {
 public:
  Averaging(torch::autograd::edge_list edges, BatchRanks& ranks)
      : Node(std::move(edges)), ranks_(ranks) {}

  std::string name() const override { return "Averaging"; }

  variable_list apply(variable_list&& gradients) override {
    if (!gradients[0].defined()) return {at::Tensor()};
    return {averaged(ranks_, gradients[0])};
  }

 private:
  BatchRanks& ranks_;
};

}  // namespace

int64_t num_ranks(const BatchRanks* ranks) { return ranks == nullptr ? 1 : ranks->size(); }

at::Tensor mean_over_ranks(BatchRanks* ranks, const at::Tensor& value) {
  if (ranks == nullptr) return value;
  at::Tensor mean = averaged(*ranks, value);
  if (!at::GradMode::is_enabled() || !value.requires_grad()) return mean;
  const std::shared_ptr<Averaging> node(
      new Averaging(torch::autograd::collect_next_edges(value), *ranks),
      torch::autograd::deleteNode);
  torch::autograd::create_gradient_edge(mean, node);
  return mean;
}

at::Tensor whole_batch(BatchRanks* ranks, const at::Tensor& share) {
  if (ranks == nullptr) return share;
  const at::NoGradGuard no_grad;
  return ranks->gather(share.detach().contiguous()).transpose(0, 1).flatten(0, 1);
}

at::Tensor own_share(const BatchRanks* ranks, const at::Tensor& whole) {
  if (ranks == nullptr) return whole;
  return whole.slice(0, ranks->rank(), std::nullopt, ranks->size());
}

}  // namespace vgen::nn
