#pragma once
// How encoders and decoders are run: dtype, memory format, and how many images at a time.

#include <torch/torch.h>

#include <vector>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::tokenizer {

/// f(x), x in compute_dtype and channels-last, the result in float32. x: (B, ...) of any dtype.
/// Without gradients, in bfloat16 on a processor with AMX, two images at a time: convolutions are
/// so fast there that activations which no cache holds cost more than they do.
template <class F>
torch::Tensor run_coder(const torch::Tensor& x, torch::ScalarType compute_dtype, const F& f) {
  constexpr int64_t kAtOnce = 2;
  const auto run = [&](const torch::Tensor& part) {
    return f(part.to(part.device(), compute_dtype, /*non_blocking=*/false, /*copy=*/false,
                     torch::MemoryFormat::ChannelsLast))
        .to(torch::kFloat32);
  };
  const bool is_in_parts = x.device().is_cpu() && compute_dtype == torch::kBFloat16 &&
                           !torch::GradMode::is_enabled() && x.size(0) > kAtOnce &&
                           kernels::best_cpu_isa() >= kernels::CpuIsa::kAmx;
  if (!is_in_parts) return run(x);
  std::vector<torch::Tensor> results;
  for (const torch::Tensor& part : x.split(kAtOnce)) results.push_back(run(part));
  return torch::cat(results);
}

}  // namespace vgen::tokenizer
