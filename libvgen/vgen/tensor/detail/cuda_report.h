#pragma once
// The CUDA part of `vgen doctor`: cuda_report.cpp where CUDA is compiled in, no_cuda_report.cpp
// otherwise.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace vgen::detail {

struct CudaReport {
  bool is_compiled = true;
  int64_t num_devices = 0;                                    ///< that CUDA finds
  std::vector<std::pair<std::string, std::string>> versions;  ///< toolkit, driver, cuDNN, NCCL
  std::vector<std::pair<std::string, std::string>> devices;   ///< one row per device, the CPU first
  std::vector<std::string> problems;
};

CudaReport report_cuda();

}  // namespace vgen::detail
