#include "vgen/tensor/detail/cuda_report.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "vgen/core/strings.h"

namespace vgen::detail {

namespace {
// 13000 is 13.0
std::string cuda_version(int version) { return str_cat(version / 1000, ".", version % 1000 / 10); }
}  // namespace

CudaReport report_cuda() {
  CudaReport report;
  int driver = 0;
  cudaDriverGetVersion(&driver);
  report.versions = {{"CUDA toolkit", cuda_version(CUDART_VERSION)},
                     {"CUDA driver", driver == 0 ? "none" : cuda_version(driver)}};
  int nccl = 0;
  if (ncclGetVersion(&nccl) == ncclSuccess) {
    report.versions.emplace_back("NCCL",
                                 str_cat(nccl / 10000, ".", nccl % 10000 / 100, ".", nccl % 100));
  } else {
    report.problems.emplace_back("NCCL does not answer: its library is broken or of another CUDA");
  }
  int num_devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&num_devices);
  if (error == cudaSuccess) report.num_devices = num_devices;
  if (error != cudaSuccess || num_devices == 0) {
    report.devices.emplace_back("cpu", "in use");
    report.devices.emplace_back("cuda", str_cat("none: ", cudaGetErrorString(error)));
    if (driver != 0 && driver < CUDART_VERSION) {
      report.problems.push_back(str_cat("the driver supports CUDA ", cuda_version(driver),
                                        ", this build needs ", cuda_version(CUDART_VERSION),
                                        ": update the driver"));
    }
    return report;
  }
  for (int i = 0; i < num_devices; ++i) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) {
      report.problems.push_back(str_cat("cuda:", i, " does not answer"));
      continue;
    }
    report.devices.emplace_back(
        str_cat("cuda:", i), str_cat(properties.name, ", ", format_bytes(properties.totalGlobalMem),
                                     ", capability ", properties.major, ".", properties.minor));
    if (properties.major < 8) {
      report.problems.push_back(str_cat("cuda:", i, " has capability ", properties.major, ".",
                                        properties.minor, ": this build has kernels from 8.0 on"));
    }
  }
  return report;
}

}  // namespace vgen::detail
