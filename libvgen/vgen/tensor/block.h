#pragma once
// Blocks of a model, such as the layers of a transformer or the stages of a VQGAN: what is sharded
// and computed again as one. A model runs its blocks through run_block() and knows nothing of what
// happens around them.

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace torch::nn {
class Module;
}

namespace vgen {

/// The forward pass of a block. It may run a second time, during the backward pass: it holds what
/// it needs by value, and everything that wants a gradient is an input or a parameter.
using BlockForward = std::function<at::Tensor(const std::vector<at::Tensor>& inputs)>;

/// What happens around blocks.
class BlockRunner {
 public:
  virtual ~BlockRunner() = default;
  /// forward(inputs), where `block` holds all parameters that it uses.
  virtual at::Tensor run(const torch::nn::Module& block, const std::vector<at::Tensor>& inputs,
                         const BlockForward& forward) = 0;
};

/// Through the runner of this thread, if it has one.
at::Tensor run_block(const torch::nn::Module& block, const std::vector<at::Tensor>& inputs,
                     const BlockForward& forward);

/// Whether this thread has a runner.
bool has_block_runner();

/// While this lives, it is the runner of this thread; null: there is none.
class BlockRunnerGuard {
 public:
  explicit BlockRunnerGuard(BlockRunner* runner);
  ~BlockRunnerGuard();
  BlockRunnerGuard(const BlockRunnerGuard&) = delete;
  BlockRunnerGuard& operator=(const BlockRunnerGuard&) = delete;

 private:
  BlockRunner* before_;
};

}  // namespace vgen
