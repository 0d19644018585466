#pragma once
// The named tensors of a LlamaGen transformer, checked, for an engine to be built from.

#include <ATen/core/Tensor.h>

#include <string>
#include <unordered_map>

#include "vgen/gpt/config.h"
#include "vgen/io/state_dict.h"

namespace torch::nn {
class Module;
}

namespace vgen::infer {

struct GptWeights {
  gpt::GptConfig config;
  /// By official name; contiguous, on the CPU, float32, bfloat16 or float16. They may lie in a
  /// mapped file, which they keep alive.
  std::unordered_map<std::string, at::Tensor> tensors = {};
  std::string source;  ///< what errors call them

  /// The tensor, by name. Throws Error(kNotFound).
  const at::Tensor& at(const std::string& name) const;
};

/// The weights that lie in a file, not copied. Names beyond those that the config calls for are
/// passed over (released files carry `freqs_cis`). Throws Error(kInvalidArgument) in one line that
/// names what is missing and which dimensions differ.
GptWeights gpt_weights(const gpt::GptConfig& config, const io::StateDict& state);

/// The weights of a module, in its memory where that is on the CPU and contiguous.
GptWeights gpt_weights(const gpt::GptConfig& config, const torch::nn::Module& module);

}  // namespace vgen::infer
