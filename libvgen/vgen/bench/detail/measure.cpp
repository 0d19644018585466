#include "vgen/bench/detail/measure.h"

#include <torch/cuda.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

namespace vgen::bench::detail {

double median_seconds(c10::Device device, int64_t repeats, const std::function<void()>& body) {
  std::vector<double> seconds;
  for (int64_t i = 0; i <= repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    if (device.is_cuda()) torch::cuda::synchronize(device.index());
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (i > 0) seconds.push_back(elapsed.count());  // the first one allocates and compiles
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

int64_t num_elements(const infer::ModelWeights& weights) {
  int64_t count = 0;
  for (const auto& [name, tensor] : weights.tensors) count += tensor.numel();
  return count;
}

void reset_peak_rss() { std::ofstream("/proc/self/clear_refs") << "5"; }

double peak_rss_mb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    double kib = 0;
    if (std::sscanf(line.c_str(), "VmHWM: %lf", &kib) == 1) return kib / 1024;
  }
  return 0;
}

}  // namespace vgen::bench::detail
