#include "vgen/tensor/device.h"

#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <sched.h>
#include <torch/cuda.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "vgen/core/error.h"

namespace vgen {

c10::Device parse_device(const std::string& text) {
  if (text == "cpu") return c10::kCPU;
  if (text == "auto") {
    return torch::cuda::is_available() ? c10::Device(c10::kCUDA, 0) : c10::Device(c10::kCPU);
  }
  int64_t index = 0;
  const bool is_cuda =
      text == "cuda" || (text.starts_with("cuda:") && parse_int(text.substr(5), index));
  require(is_cuda && index >= 0 && index < 128, ErrorCode::kInvalidArgument, "device '",
          printable(text), "': expected cpu, cuda, cuda:N or auto");
  const int64_t num_devices = num_cuda_devices();
  require(index < num_devices, ErrorCode::kUnavailable, "device '", text, "': this machine has ",
          num_devices, " CUDA devices that LibTorch can use; `vgen doctor` says why");
  return {c10::kCUDA, static_cast<c10::DeviceIndex>(index)};
}

int64_t num_cuda_devices() { return static_cast<int64_t>(torch::cuda::device_count()); }

std::string device_for_local_rank(const std::string& text, int64_t local_rank, int64_t num_gpus) {
  if ((text != "auto" && text != "cuda") || num_gpus == 0) return text;
  if (num_gpus == 1) return "cuda:0";
  require(local_rank < num_gpus, ErrorCode::kUnavailable, "device '", text, "': local rank ",
          local_rank, " finds ", num_gpus,
          " CUDA devices, expected one for each process; start fewer, or give --device");
  return str_cat("cuda:", local_rank);
}

double peak_memory_mb(c10::Device device) {
  if (!device.is_cpu()) {
    const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
    const auto total = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return static_cast<double>(stats.allocated_bytes[total].peak) / 1e6;
  }
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    double kib = 0;
    if (std::sscanf(line.c_str(), "VmHWM: %lf", &kib) == 1) return kib * 1024 / 1e6;
  }
  return 0;
}

c10::ScalarType parse_precision(const std::string& text) {
  if (text == "fp32") return c10::kFloat;
  if (text == "bf16") return c10::kBFloat16;
  if (text == "fp16") return c10::kHalf;
  throw_error(ErrorCode::kInvalidArgument, "precision '", printable(text),
              "': expected fp32, bf16 or fp16");
}

std::string precision_name(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::kFloat:
      return "fp32";
    case c10::kBFloat16:
      return "bf16";
    case c10::kHalf:
      return "fp16";
    default:
      throw_error(ErrorCode::kInternal, "no precision is called ", c10::toString(dtype));
  }
}

int set_num_threads(int num_threads) {
  if (num_threads <= 0) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    num_threads = sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
  }
  at::set_num_threads(num_threads);
  return num_threads;
}

void share_threads(int num_threads, int64_t local_processes) {
  const int cores = set_num_threads(num_threads);
  if (num_threads > 0 || local_processes <= 1) return;
  set_num_threads(std::max(1, cores / static_cast<int>(local_processes)));
}

}  // namespace vgen
