#pragma once
// The convolution of every image model here, with what stands around it in them.
// B batch, C input channels, O output channels, K kernel, H height, W width.

#include <torch/torch.h>

#include <functional>
#include <memory>
#include <utility>

#include "vgen/nn/group_norm.h"
#include "vgen/nn/weight_cache.h"

namespace vgen::nn {

struct Conv2dOptions {
  int64_t in_channels = 0;
  int64_t out_channels = 0;
  int64_t kernel_size = 3;
  int64_t stride = 1;
  int64_t padding = 1;  ///< zeros on all four sides
  bool use_bias = true;
  bool is_padded_at_end = false;  ///< 3x3, stride 2: one row of zeros below and one column to the
                                  ///< right instead of `padding`
};

/// 3x3, stride 1, same size: the `C3` of the specs. And 1x1: the `C1`.
Conv2dOptions conv3x3(int64_t in_channels, int64_t out_channels);
Conv2dOptions conv1x1(int64_t in_channels, int64_t out_channels);

/// What happens to the input before a convolution and to the output behind it, in one operator:
/// conv(upsample(silu(norm(x)))) + residual. Only x is kept for the backward pass; what lies
/// between is computed again.
struct Conv2dExtras {
  GroupNormImpl* norm_silu = nullptr;  ///< norm->forward_silu first
  bool is_upsampled = false;           ///< x doubled in height and width (nearest)
  torch::Tensor residual_BOHW = {};    ///< dtype of x
  bool is_input_spent = false;         ///< nobody reads x afterwards: where no gradient is wanted,
                                       ///< its memory may be written
};

/// Called with a weight of which a copy in another dtype is kept from now on.
using WeightHook = std::function<void(const torch::Tensor& weight)>;

/// 2-d convolution. Parameters `weight` (O, C, K, K) and `bias` (O) stay float32; the computation
/// is done in the dtype of the input, so a model runs in bf16 when its input is bf16.
/// Initialisation as PyTorch's: both uniform within 1 / sqrt(C K K).
///
/// On CUDA narrow inputs are computed channels-last, which is what the tensor cores' kernels take.
/// On the CPU: 3x3 convolutions of float32 go through kernels/winograd.h where there are enough
/// pixels, and bf16 ones too on a processor without AMX; every other one through oneDNN. bf16 on a
/// processor without fast products of it (kernels/cpu_isa.h) is computed in float32 and rounded.
///
/// Of a weight that is not trained a copy in the dtype that is computed in is kept, where that is
/// not float32; nothing else is.
class Conv2dImpl : public torch::nn::Module {
 public:
  explicit Conv2dImpl(const Conv2dOptions& options);
  /// x_BCHW: any dtype and memory format; channels-last stays channels-last, and on the CPU the
  /// result always is, on CUDA that of narrow inputs. Differentiable once.
  torch::Tensor forward(const torch::Tensor& x_BCHW) { return forward_with(x_BCHW, {}); }
  torch::Tensor forward_with(const torch::Tensor& x_BCHW, const Conv2dExtras& extras);

  /// While the weight stays the same it is read no more once `hook` is called with it, unless
  /// inputs of several dtypes come: a place to give back memory that can be had again, such as
  /// pages of a mapped file. May be called from any thread. Not to be set while the convolution is
  /// in use.
  void on_weight_kept(WeightHook hook) { on_weight_kept_ = std::move(hook); }

  const Conv2dOptions& options() const { return options_; }
  torch::Tensor weight, bias;

 private:
  /// Whether what is derived of the weight is kept. Not while it is trained: also a forward pass
  /// without a graph, which a backward pass will repeat, would keep it until the next step.
  bool is_weight_kept() const;
  torch::Tensor forward_composed(const torch::Tensor& x_BCHW, const Conv2dExtras& extras);

  Conv2dOptions options_;
  std::unique_ptr<WeightCache> cache_;
  WeightHook on_weight_kept_;
};
TORCH_MODULE(Conv2d);

}  // namespace vgen::nn
