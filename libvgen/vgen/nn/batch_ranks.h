#pragma once
// What a layer takes over a whole batch, where several processes have a share of it each.
//
// Layers borrow a BatchRanks, null where this process has all. All shares have the same shape, and
// number i of rank r is number i size() + r of the whole batch, which is how training data is
// shared. Everything here is collective: every rank calls it, in the same order.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace vgen::nn {

/// The processes that share a batch.
class BatchRanks {
 public:
  virtual ~BatchRanks() = default;
  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;
  /// Sum over the ranks in place; contiguous, without graph.
  virtual void sum(const at::Tensor& value) = 0;
  /// `value` of every rank, (size(), ...); contiguous, without graph.
  virtual at::Tensor gather(const at::Tensor& value) = 0;
};

/// 1 for null.
int64_t num_ranks(const BatchRanks* ranks);

/// Mean over the ranks of a floating tensor; `value` itself for null. Differentiable: where each
/// rank differentiates its own loss and gradients of parameters are averaged over the ranks
/// afterwards, these are the gradients of the mean of all losses. The backward pass is collective,
/// too.
at::Tensor mean_over_ranks(BatchRanks* ranks, const at::Tensor& value);

/// The whole batch of which `share` (B, ...) is this rank's: (size() B, ...), in its order. `share`
/// itself for null. No gradient.
at::Tensor whole_batch(BatchRanks* ranks, const at::Tensor& share);

/// The opposite: this rank's rows of `whole`, a view.
at::Tensor own_share(const BatchRanks* ranks, const at::Tensor& whole);

}  // namespace vgen::nn
