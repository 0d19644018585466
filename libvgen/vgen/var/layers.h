#pragma once
// The parts that hold VAR's weights. Unlike torch::nn's they draw nothing when they are made: the
// transformer draws all weights once, and a model on kMeta has names and shapes but no memory.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

namespace vgen::var {

/// x W^T + b. Parameters `weight` (out, in) and, unless use_bias is false, `bias` (out), float32.
class LinearImpl : public torch::nn::Module {
 public:
  LinearImpl(int64_t in, int64_t out, c10::Device device, bool use_bias = true);
  /// (..., in) to (..., out).
  torch::Tensor forward(const torch::Tensor& x) const;

  torch::Tensor weight, bias;
};
TORCH_MODULE(Linear);

/// Rows of a table. Parameter `weight` (rows, width), float32.
class EmbeddingImpl : public torch::nn::Module {
 public:
  EmbeddingImpl(int64_t rows, int64_t width, c10::Device device);
  /// index: int64, any shape, each in [0, rows). Returns (..., width).
  torch::Tensor forward(const torch::Tensor& index) const;

  torch::Tensor weight;
};
TORCH_MODULE(Embedding);

/// What a condition does to a block or to the head: Linear(SiLU(c)), adaLN (arXiv:2212.09748).
class AdaLinImpl : public torch::nn::Module {
 public:
  /// `parts`: how many vectors of `width` it makes.
  AdaLinImpl(int64_t width, int64_t parts, c10::Device device);
  /// cond_BC: floating. Returns (B, 1, parts, C).
  torch::Tensor forward(const torch::Tensor& cond_BC);

 private:
  int64_t parts_;
  Linear linear_{nullptr};  // registered as "1": number 0 of the official Sequential is the SiLU
};
TORCH_MODULE(AdaLin);

}  // namespace vgen::var
