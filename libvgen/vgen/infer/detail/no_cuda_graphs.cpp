// In a build without CUDA.
#include "vgen/infer/detail/cuda_graphs.h"

namespace vgen::infer {

std::unique_ptr<StepGraphs> make_cuda_graphs(c10::Device) { return nullptr; }

}  // namespace vgen::infer
