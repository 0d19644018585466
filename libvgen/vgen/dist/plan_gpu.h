#pragma once
// GPUs as their data sheets have them, for plans on paper.

#include <span>
#include <string>

namespace vgen::dist {

/// GB are 10^9 bytes, TFLOP/s are 10^12 operations a second, without sparsity. Links: one
/// direction, of one GPU.
struct Gpu {
  const char* name;   ///< "h100": what --gpu takes
  const char* title;  ///< "NVIDIA H100 SXM 80 GB"
  double memory_gb;
  double bf16_tflops;  ///< matrix products in bf16 or fp16 with float32 sums
  double tf32_tflops;  ///< in float32, rounded to TF32 where the GPU does that
  double fp32_tflops;  ///< in float32 proper
  double memory_gb_s;  ///< of its memory
  double intra_gb_s;   ///< to the other GPUs of its node
  double inter_gb_s;   ///< its share of the node's network
  const char* links;   ///< what these are: "NVLink 4, 400 Gb/s InfiniBand"
};

std::span<const Gpu> known_gpus();

/// Throws Error(kInvalidArgument) for another name: the nearest one, or all.
const Gpu& find_gpu(const std::string& name);

}  // namespace vgen::dist
