#include "vgen/dist/activation_checkpoint.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"
#include "vgen/tensor/autocast.h"

using namespace vgen;

namespace {

/// A block with dropout in the middle, and a parameter of it that has no part in the result.
struct Layer : torch::nn::Module {
  Layer() {
    torch::manual_seed(1);
    up = register_module("up", torch::nn::Linear(6, 9));
    down = register_module("down", torch::nn::Linear(9, 6));
    spare = register_parameter("spare", torch::ones({3}));
  }
  torch::Tensor forward(const torch::Tensor& x) {
    ++num_passes;
    return x + down(torch::dropout(torch::tanh(up(x)), 0.4, /*train=*/true));
  }
  torch::nn::Linear up{nullptr}, down{nullptr};
  torch::Tensor spare;
  int num_passes = 0;
};

BlockForward forward_of(Layer& layer) {
  return [&layer](const std::vector<at::Tensor>& inputs) { return layer.forward(inputs[0]); };
}

struct Result {
  torch::Tensor output, input_gradient, next_random;
  std::vector<torch::Tensor> gradients;
};

/// Two passes through the block, so that its masks differ and its gradients add up; in bf16 one
/// pass: the sum would depend on the dtype it is made in.
Result differentiate(BlockRunner* runner, c10::ScalarType precision = c10::kFloat) {
  Layer layer;
  const torch::Tensor x = torch::randn({4, 6}).requires_grad_();
  const BlockRunnerGuard guard(runner);
  torch::Tensor y;
  {
    const Autocast autocast(c10::kCPU, precision);
    y = run_block(layer, {x}, forward_of(layer));
    if (precision == c10::kFloat) y = run_block(layer, {y * 2}, forward_of(layer));
  }
  y.square().sum().backward();
  Result result{y, x.grad(), torch::rand({3}), {}};
  for (const auto& parameter : layer.parameters()) result.gradients.push_back(parameter.grad());
  return result;
}

void check_equal(const Result& actual, const Result& expected) {
  CHECK_THAT(actual.output, test::AllClose(expected.output, test::kExact));
  CHECK_THAT(actual.input_gradient, test::AllClose(expected.input_gradient, test::kExact));
  CHECK_THAT(actual.next_random, test::AllClose(expected.next_random, test::kExact));
  REQUIRE(actual.gradients.size() == expected.gradients.size());
  for (size_t i = 0; i < actual.gradients.size(); ++i) {
    REQUIRE(actual.gradients[i].defined() == expected.gradients[i].defined());
    if (!actual.gradients[i].defined()) continue;
    CHECK_THAT(actual.gradients[i], test::AllClose(expected.gradients[i], test::kExact));
  }
}

}  // namespace

TEST_CASE("checkpoint: the same gradients with dropout", "[dist]") {
  dist::CheckpointRunner runner;
  check_equal(differentiate(&runner), differentiate(nullptr));
}

TEST_CASE("checkpoint: the backward pass computes in the autocast of the forward pass", "[dist]") {
  dist::CheckpointRunner runner;
  check_equal(differentiate(&runner, c10::kBFloat16), differentiate(nullptr, c10::kBFloat16));
}

TEST_CASE("checkpoint: inputs may be undefined or want no gradient", "[dist]") {
  Layer layer;
  const torch::Tensor x = torch::randn({4, 6});
  const auto forward = [&layer](const std::vector<at::Tensor>& inputs) {
    return inputs[0].defined() ? inputs[0] : layer.forward(inputs[1]);
  };
  const torch::Tensor y = dist::checkpointed({torch::Tensor(), x}, forward, layer.parameters());
  CHECK(layer.num_passes == 1);
  y.sum().backward();
  CHECK(layer.num_passes == 2);
  CHECK(layer.up->weight.grad().defined());
  CHECK_FALSE(layer.spare.grad().defined());
}

TEST_CASE("checkpoint: nothing is computed twice without a gradient to find", "[dist]") {
  Layer layer;
  const torch::Tensor x = torch::randn({4, 6}).requires_grad_();
  {
    const torch::NoGradGuard no_grad;
    CHECK_FALSE(dist::checkpointed({x}, forward_of(layer), layer.parameters()).requires_grad());
  }
  for (auto& parameter : layer.parameters()) parameter.set_requires_grad(false);
  CHECK_FALSE(
      dist::checkpointed({x.detach()}, forward_of(layer), layer.parameters()).requires_grad());
  CHECK(layer.num_passes == 2);
}

TEST_CASE("checkpoint: the gradient of a single parameter, and the graph again after it",
          "[dist]") {
  Layer layer;
  const torch::Tensor x = torch::randn({4, 6}).requires_grad_();
  const torch::Tensor loss =
      dist::checkpointed({x}, forward_of(layer), layer.parameters()).square().sum();
  const auto alone =
      torch::autograd::grad({loss}, {layer.down->weight}, {}, /*retain_graph=*/true)[0];
  CHECK_FALSE(layer.down->weight.grad().defined());
  CHECK_FALSE(x.grad().defined());
  loss.backward();
  CHECK_THAT(layer.down->weight.grad(), test::AllClose(alone, test::kExact));
  CHECK_THROWS(loss.backward());
}
