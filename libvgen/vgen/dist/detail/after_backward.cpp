#include "vgen/dist/detail/after_backward.h"

#include <torch/torch.h>

namespace vgen::dist::detail {

namespace {

/// Passes gradients through.
class Passage : public torch::autograd::Node {
 public:
  Passage(torch::autograd::edge_list edges, std::function<void()> call)
      : Node(std::move(edges)), call_(std::move(call)) {}

  std::string name() const override { return "Passage"; }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    call_();
    return std::move(gradients);
  }

 private:
  std::function<void()> call_;
};

}  // namespace

std::vector<at::Tensor> after_backward(const std::vector<at::Tensor>& inputs,
                                       std::function<void()> call) {
  std::vector<at::Tensor> differentiated;
  for (const at::Tensor& input : inputs) {
    if (input.defined() && input.requires_grad()) differentiated.push_back(input);
  }
  if (differentiated.empty() || !at::GradMode::is_enabled()) return inputs;
  const std::shared_ptr<Passage> node(
      new Passage(torch::autograd::collect_next_edges(differentiated), std::move(call)),
      torch::autograd::deleteNode);
  std::vector<at::Tensor> results;
  for (const at::Tensor& input : inputs) {
    results.push_back(input);
    if (!input.defined() || !input.requires_grad()) continue;
    results.back() = input.detach();
    torch::autograd::create_gradient_edge(results.back(), node);
  }
  return results;
}

}  // namespace vgen::dist::detail
