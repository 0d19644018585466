#pragma once
// Activation checkpointing: a block keeps its inputs alone and computes a second time in the
// backward pass (arXiv:1604.06174).

#include <vector>

#include "vgen/tensor/block.h"

namespace vgen::dist {

/// forward(inputs), of which only the inputs are kept. In the backward pass it runs again with the
/// state of the random generators and the autocast of now, so that dropout draws the same masks.
/// Gradients reach inputs and `parameters` (what forward uses besides) through the graph around it,
/// so whoever waits for a parameter's gradient there sees it once. Inputs may be undefined. Forward
/// may change neither them nor anything else; what it makes by the way, other than its result, has
/// no gradient. Not differentiable twice.
at::Tensor checkpointed(const std::vector<at::Tensor>& inputs, const BlockForward& forward,
                        const std::vector<at::Tensor>& parameters);

/// Every block is checkpointed.
class CheckpointRunner : public BlockRunner {
 public:
  at::Tensor run(const torch::nn::Module& block, const std::vector<at::Tensor>& inputs,
                 const BlockForward& forward) override;
};

}  // namespace vgen::dist
