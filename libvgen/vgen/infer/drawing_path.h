#pragma once
// Which code draws on a device, for `vgen doctor`.

#include <string>

namespace vgen::infer {

/// How a GPT draws on `device` (as parse_device): "cpu, avx2 kernels" with the instruction level
/// that the processor has, "cuda:0, CUDA graphs", or "cuda:0, LibTorch's operators" in a build
/// without CUDA. Throws as parse_device.
std::string drawing_path(const std::string& device = "auto");

}  // namespace vgen::infer
