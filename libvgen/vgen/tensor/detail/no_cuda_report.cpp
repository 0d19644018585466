#include "vgen/tensor/detail/cuda_report.h"

namespace vgen::detail {

CudaReport report_cuda() {
  return {.is_compiled = false,
          .num_devices = 0,
          .versions = {{"CUDA", "not compiled in (VGEN_CUDA=OFF, or no toolkit at build time)"},
                       {"NCCL", "not compiled in"}},
          .devices = {{"cpu", "in use"}},
          .problems = {}};
}

}  // namespace vgen::detail
