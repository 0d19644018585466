#include "vgen/train/matmul_peak.h"

#include <torch/cuda.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace vgen::train {

namespace {

constexpr double kBudgetSeconds = 0.25;  // of the products of one size
constexpr int kMaxRuns = 8;

double matmul_seconds(const torch::Tensor& a, torch::Tensor& product) {
  const auto begin = std::chrono::steady_clock::now();
  torch::mm_out(product, a, a);
  if (a.is_cuda()) torch::cuda::synchronize(a.device().index());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double best_flops(c10::Device device, c10::ScalarType dtype, int64_t size) {
  const torch::Tensor a =
      torch::ones({size, size}, torch::TensorOptions().device(device).dtype(dtype));
  torch::Tensor product = torch::empty_like(a);
  matmul_seconds(a, product);  // not counted: libraries set themselves up
  double best = matmul_seconds(a, product), total = best;
  for (int run = 1; run < kMaxRuns && total < kBudgetSeconds; ++run) {
    const double seconds = matmul_seconds(a, product);
    best = std::min(best, seconds);
    total += seconds;
  }
  return 2 * std::pow(static_cast<double>(size), 3) / best;
}

}  // namespace

double measure_matmul_flops(c10::Device device, c10::ScalarType dtype) {
  const torch::NoGradGuard no_grad;
  if (device.is_cuda()) return best_flops(device, dtype, 8192);
  constexpr int64_t kSmall = 256, kLarge = 1536;
  const double single = best_flops(device, torch::kFloat32, kLarge);
  if (dtype == torch::kFloat32) return single;
  // Where the dtype is emulated a large product takes many seconds: a small one tells.
  if (best_flops(device, dtype, kSmall) < single / 2) return single;
  return std::max(single, best_flops(device, dtype, kLarge));
}

}  // namespace vgen::train
