#include "vgen/var/layers.h"

#include <torch/torch.h>

#include "vgen/nn/narrow.h"
#include "vgen/tensor/deferred_init.h"

namespace vgen::var {

LinearImpl::LinearImpl(int64_t in, int64_t out, c10::Device device, bool use_bias) {
  weight = register_parameter("weight", torch::empty({out, in}, device));
  defer_weight(weight);
  if (use_bias) bias = register_parameter("bias", torch::empty({out}, device));
}

torch::Tensor LinearImpl::forward(const torch::Tensor& x) const {
  return nn::linear(x, weight, bias);
}

EmbeddingImpl::EmbeddingImpl(int64_t rows, int64_t width, c10::Device device) {
  weight = register_parameter("weight", torch::empty({rows, width}, device));
  defer_weight(weight);
}

torch::Tensor EmbeddingImpl::forward(const torch::Tensor& index) const {
  return torch::embedding(weight, index);
}

AdaLinImpl::AdaLinImpl(int64_t width, int64_t parts, c10::Device device) : parts_(parts) {
  linear_ = register_module("1", Linear(width, parts * width, device));
}

torch::Tensor AdaLinImpl::forward(const torch::Tensor& cond_BC) {
  return linear_(torch::silu(cond_BC)).view({cond_BC.size(0), 1, parts_, cond_BC.size(1)});
}

}  // namespace vgen::var
