#include "vgen/nn/conv2d.h"

#include <cmath>

namespace vgen::nn {

Conv2dOptions conv3x3(int64_t in_channels, int64_t out_channels) {
  return {.in_channels = in_channels, .out_channels = out_channels};
}

Conv2dOptions conv1x1(int64_t in_channels, int64_t out_channels) {
  return {.in_channels = in_channels, .out_channels = out_channels, .kernel_size = 1, .padding = 0};
}

Conv2dImpl::Conv2dImpl(const Conv2dOptions& options) : options_(options) {
  const int64_t kernel = options.kernel_size;
  const double bound = 1 / std::sqrt(static_cast<double>(options.in_channels * kernel * kernel));
  weight = register_parameter(
      "weight", torch::empty({options.out_channels, options.in_channels, kernel, kernel})
                    .uniform_(-bound, bound));
  if (options.use_bias) {
    bias = register_parameter("bias", torch::empty({options.out_channels}).uniform_(-bound, bound));
  }
}

torch::Tensor Conv2dImpl::forward(const torch::Tensor& x_BCHW) {
  const auto dtype = x_BCHW.scalar_type();
  return at::conv2d(x_BCHW, weight.to(dtype), bias.defined() ? bias.to(dtype) : bias,
                    options_.stride, options_.padding);
}

}  // namespace vgen::nn
