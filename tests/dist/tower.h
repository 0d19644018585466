#pragma once
// A small model of blocks, for the tests of sharding.

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "vgen/dist/strategy.h"

namespace vgen::test {

/// Odd sizes on purpose: 7 x 5, 3 and 1 elements; `spare` has no part in the result.
struct LayerImpl : torch::nn::Module {
  LayerImpl(int64_t dim, int64_t hidden) {
    up = register_module("up", torch::nn::Linear(dim, hidden));
    gain = register_parameter("gain", torch::empty({3}));
    spare = register_parameter("spare", torch::empty({3, 2}));
    down = register_module("down", torch::nn::Linear(hidden, dim));
    shift = register_parameter("shift", torch::empty({}));
  }
  torch::Tensor forward(const torch::Tensor& x) {
    return x + gain.sum() * down(torch::tanh(up(x))) + shift;
  }
  torch::nn::Linear up{nullptr}, down{nullptr};
  torch::Tensor gain, spare, shift;
};
TORCH_MODULE(Layer);

struct Shape {
  int64_t in = 4, dim = 7, hidden = 5, num_layers = 3, out = 2;
};

/// Layers as blocks, a matrix before and one after them.
struct TowerImpl : torch::nn::Module {
  TowerImpl(const Shape& shape, uint64_t seed) {
    first = register_module("first", torch::nn::Linear(shape.in, shape.dim));
    for (int64_t i = 0; i < shape.num_layers; ++i) {
      layers.push_back(
          register_module("layer" + std::to_string(i), Layer(shape.dim, shape.hidden)));
    }
    extra = register_parameter("extra", torch::empty({5}));  // has no part in the result
    last = register_module("last", torch::nn::Linear(shape.dim, shape.out));
    const torch::NoGradGuard no_grad;
    const auto generator = at::detail::createCPUGenerator(seed);
    const double bound = 1 / std::sqrt(static_cast<double>(shape.dim));
    for (auto& parameter : parameters()) parameter.uniform_(-bound, bound, generator);
  }
  torch::Tensor forward(torch::Tensor x) {
    x = first(x);
    for (const Layer& layer : layers) {
      x = run_block(*layer, {x}, [layer = layer](const std::vector<at::Tensor>& inputs) mutable {
        return layer(inputs[0]);
      });
    }
    return last(x);
  }
  dist::PhaseModel model() {
    dist::PhaseModel model;
    for (const auto& item : named_parameters()) {
      model.names.push_back(item.key());
      model.parameters.push_back(item.value());
    }
    for (const Layer& layer : layers) model.blocks.push_back(layer.ptr());
    return model;
  }
  torch::nn::Linear first{nullptr}, last{nullptr};
  torch::Tensor extra;
  std::vector<Layer> layers;
};
TORCH_MODULE(Tower);

inline dist::ParallelConfig parallel(const std::string& strategy, int64_t shard_ranks = 0) {
  dist::ParallelConfig config;
  config.strategy = strategy;
  config.shard_ranks = shard_ranks;
  return config;
}

}  // namespace vgen::test
