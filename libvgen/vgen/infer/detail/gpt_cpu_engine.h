#pragma once
// The engine on the CPU, on kernels of our own.

#include <memory>

#include "vgen/infer/gpt_engine.h"

namespace vgen::infer {

std::unique_ptr<GptEngine> make_gpt_cpu_engine(GptWeights weights, const GptEngineOptions& options);

}  // namespace vgen::infer
