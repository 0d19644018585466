#pragma once
// The engine on LibTorch's operators, for any device; on CUDA a step is a captured graph, with
// kernels of our own between the matrix products.

#include <memory>

#include "vgen/infer/gpt_engine.h"

namespace vgen::infer {

std::unique_ptr<GptEngine> make_gpt_tensor_engine(GptWeights weights,
                                                  const GptEngineOptions& options);

}  // namespace vgen::infer
