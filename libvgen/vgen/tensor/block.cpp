#include "vgen/tensor/block.h"

namespace vgen {

namespace {
thread_local BlockRunner* runner_of_thread = nullptr;
}

at::Tensor run_block(const torch::nn::Module& block, const std::vector<at::Tensor>& inputs,
                     const BlockForward& forward) {
  return runner_of_thread == nullptr ? forward(inputs)
                                     : runner_of_thread->run(block, inputs, forward);
}

bool has_block_runner() { return runner_of_thread != nullptr; }

BlockRunnerGuard::BlockRunnerGuard(BlockRunner* runner) : before_(runner_of_thread) {
  runner_of_thread = runner;
}

BlockRunnerGuard::~BlockRunnerGuard() { runner_of_thread = before_; }

}  // namespace vgen
