#pragma once
// The weights of a LlamaGen transformer, checked, for an engine to be built from.

#include "vgen/gpt/config.h"
#include "vgen/infer/model_weights.h"

namespace torch::nn {
class Module;
}

namespace vgen::infer {

struct GptWeights : ModelWeights {
  gpt::GptConfig config = {};
};

/// The parameters and buffers of a training transformer (gpt/transformer.h) and their shapes, in
/// the order of its state dict; nothing is allocated.
NamedShapes gpt_shapes(const gpt::GptConfig& config);

/// The weights that lie in a file, not copied. Names beyond those that the config calls for are
/// passed over (released files carry `freqs_cis`). Throws Error(kInvalidArgument) in one line that
/// names what is missing and which dimensions differ.
GptWeights gpt_weights(const gpt::GptConfig& config, const io::StateDict& state);

/// The weights of a module, in its memory where that is on the CPU and contiguous.
GptWeights gpt_weights(const gpt::GptConfig& config, const torch::nn::Module& module);

}  // namespace vgen::infer
