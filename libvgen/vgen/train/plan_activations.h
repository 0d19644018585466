#pragma once
// What a training forward keeps for the backward pass, counted from the shape of the model: the
// tensors that autograd saves, operator by operator, as the models' sources have them.

#include <cstdint>
#include <vector>

#include "vgen/dist/plan.h"
#include "vgen/gpt/config.h"
#include "vgen/var/config.h"

namespace vgen::train {

/// What it depends on besides the model.
struct ActivationSetup {
  int64_t batch = 1;          ///< samples of a micro-batch of one rank
  int64_t compute_bytes = 4;  ///< of an element in the run's precision
  /// Blocks are gathered in the run's precision (fsdp, hsdp): none of their weights is cast.
  bool has_narrow_blocks = false;
  bool is_cpu = false;  ///< CUDA keeps masks of dropout, and more of convolutions
  /// Narrow products are made in float32 (nn/narrow.h): weights are taken as they are, and
  /// attention keeps its inputs alone.
  bool is_widened = false;
  int64_t micro_batches = 1;     ///< of a step: images of all are there at the same time
  bool is_batch_shared = false;  ///< among ranks: batch norms are theirs together

  bool is_mixed() const { return compute_bytes < 4; }
  bool is_casting() const { return is_mixed() && !is_widened; }
  bool is_casting_blocks() const { return is_casting() && !has_narrow_blocks; }
};

/// Bytes of one rank, weights that autocast has cast included.
struct Activations {
  struct Block {
    int64_t kept = 0;     ///< for the backward pass, the inputs included
    int64_t input = 0;    ///< the inputs alone: what a checkpointed block keeps
    int64_t working = 0;  ///< beside them while its backward pass computes
    int64_t held = 0;     ///< and where it is checkpointed: its result, computed again
  };
  std::vector<Block> blocks;  ///< first to last; none: the model is counted as a whole
  int64_t before = 0;         ///< kept in front of the blocks
  int64_t head = 0;           ///< and behind them, up to the loss
  int64_t extra = 0;          ///< beside all that when the backward pass begins: of the logits

  /// At the end of the forward pass.
  int64_t kept(bool is_checkpointed) const;
  /// The most at a time: when the backward pass begins, or when it is in the last block.
  int64_t peak(bool is_checkpointed) const;
  /// The most at a time with what a strategy has at the same moments.
  int64_t peak_with(const dist::PassMemory& pass, bool is_checkpointed) const;
};

/// A GPT with class labels and whole sequences; scaled dot product attention that keeps no matrix
/// of scores (flash or memory-efficient).
Activations gpt_activations(const gpt::GptConfig& config, const ActivationSetup& setup);

/// VAR with all scales, attention as above.
Activations var_activations(const var::VarConfig& config, const ActivationSetup& setup);

}  // namespace vgen::train
