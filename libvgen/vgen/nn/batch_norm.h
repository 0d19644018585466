#pragma once
// Batch normalisation of a batch that several processes may share. B batch, C channels, H height,
// W width.

#include <torch/torch.h>

#include "vgen/nn/batch_ranks.h"

namespace vgen::nn {

/// torch.nn.BatchNorm2d (arXiv:1502.03167), its parameters, buffers and values. In training with
/// set_ranks(): torch.nn.SyncBatchNorm; mean and variance are those of the batches of all ranks
/// together, which all ranks' buffers then follow alike.
class BatchNormImpl : public torch::nn::BatchNorm2dImpl {
 public:
  explicit BatchNormImpl(int64_t channels);
  /// x_BCHW: floating. The result has its dtype; between the ranks all is float32. With ranks a
  /// training forward and its backward pass are collective.
  torch::Tensor forward(const torch::Tensor& x_BCHW);
  /// Borrows; null: this process has the whole batch.
  void set_ranks(BatchRanks* ranks) { ranks_ = ranks; }

 private:
  void update_averages(const torch::Tensor& mean_C, const torch::Tensor& var_C, int64_t count);

  BatchRanks* ranks_ = nullptr;
};
TORCH_MODULE(BatchNorm);

}  // namespace vgen::nn
