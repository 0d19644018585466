#pragma once

#include <memory>

#include "vgen/infer/detail/step_graphs.h"

namespace vgen::infer {

/// Null in a build without CUDA.
std::unique_ptr<StepGraphs> make_cuda_graphs(c10::Device device);

}  // namespace vgen::infer
