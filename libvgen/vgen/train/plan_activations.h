#pragma once
// What a training forward keeps for the backward pass, counted from the shape of the model: the
// tensors that autograd saves, operator by operator, as the models' sources have them.

#include <cstdint>
#include <vector>

#include "vgen/dist/plan.h"
#include "vgen/gpt/config.h"
#include "vgen/tokenizer/encoder.h"
#include "vgen/var/config.h"

namespace vgen::train {

/// What it depends on besides the model.
struct ActivationSetup {
  int64_t batch = 1;          ///< samples of a micro-batch of one rank
  int64_t compute_bytes = 4;  ///< of an element in the run's precision
  /// Blocks are gathered in the run's precision (fsdp, hsdp): none of their weights is cast.
  bool has_narrow_blocks = false;
  /// Our kernels for the CPU keep less than LibTorch's operators do on CUDA.
  bool is_cpu = false;

  bool is_mixed() const { return compute_bytes < 4; }
  bool is_casting_blocks() const { return is_mixed() && !has_narrow_blocks; }
};

/// Bytes of one rank, weights that autocast has cast included.
struct Activations {
  struct Block {
    int64_t kept = 0;     ///< for the backward pass, the inputs included
    int64_t input = 0;    ///< the inputs alone: what a checkpointed block keeps
    int64_t working = 0;  ///< beside them while its backward pass computes
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

/// Of an encoder or a decoder of the tokenizers, per image; its blocks are those of
/// EncoderImpl::blocks() or DecoderImpl::blocks(). `side` in pixels. Dropout is taken to be off.
struct CoderCost {
  /// Elements kept for the backward pass: by our kernels, and by LibTorch's operators.
  struct Kept {
    double cpu = 0, cuda = 0;
    double input = 0;  ///< of a block
  };
  double forward_flops = 0;  ///< of direct convolutions and attention
  std::vector<Kept> blocks = {};
  Kept outside = {};
};
CoderCost encoder_cost(const tokenizer::CoderConfig& config, int64_t side);
CoderCost decoder_cost(const tokenizer::CoderConfig& config, int64_t side);

}  // namespace vgen::train
