#pragma once
// The convolution of every image model here.
// B batch, C input channels, O output channels, K kernel, H height, W width.

#include <torch/torch.h>

namespace vgen::nn {

struct Conv2dOptions {
  int64_t in_channels = 0;
  int64_t out_channels = 0;
  int64_t kernel_size = 3;
  int64_t stride = 1;
  int64_t padding = 1;  ///< zeros on all four sides
  bool use_bias = true;
};

/// 3x3, stride 1, same size: the `C3` of the specs. And 1x1: the `C1`.
Conv2dOptions conv3x3(int64_t in_channels, int64_t out_channels);
Conv2dOptions conv1x1(int64_t in_channels, int64_t out_channels);

/// 2-d convolution. Parameters `weight` (O, C, K, K) and `bias` (O) stay float32; the computation
/// is done in the dtype of the input, so a model runs in bf16 when its input is bf16.
/// Initialisation as PyTorch's: both uniform within 1 / sqrt(C K K).
class Conv2dImpl : public torch::nn::Module {
 public:
  explicit Conv2dImpl(const Conv2dOptions& options);
  /// x_BCHW: any dtype and memory format; channels-last stays channels-last. Differentiable.
  torch::Tensor forward(const torch::Tensor& x_BCHW);

  const Conv2dOptions& options() const { return options_; }
  torch::Tensor weight, bias;

 private:
  Conv2dOptions options_;
};
TORCH_MODULE(Conv2d);

}  // namespace vgen::nn
