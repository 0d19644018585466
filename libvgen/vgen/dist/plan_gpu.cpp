#include "vgen/dist/plan_gpu.h"

#include <vector>

#include "vgen/core/error.h"

namespace vgen::dist {

namespace {

// Sources: NVIDIA's data sheets of H100 (SXM), H200 (SXM), A100 (SXM, 40 and 80 GB) and L40S, the
// Ada GPU architecture white paper (RTX 4090). Tensor core numbers there are with sparsity; here
// they are halved. Links between GPUs are given for both directions; here for one: NVLink 4 has
// 900 GB/s, NVLink 3 600 GB/s, PCIe 4.0 x16 64 GB/s. Networks: the data sheets of DGX H100 and H200
// (a 400 Gb/s ConnectX-7 for each GPU) and of DGX A100 (200 Gb/s). The cards without NVLink have no
// such server: 100 Gb/s for each is an assumption, as is everything of `cpu`.
constexpr Gpu kGpus[] = {
    {"h100", "NVIDIA H100 SXM 80 GB", 80, 989.4, 494.7, 67, 3350, 450, 50,
     "NVLink 4, 400 Gb/s network"},
    {"h200", "NVIDIA H200 SXM 141 GB", 141, 989.4, 494.7, 67, 4800, 450, 50,
     "NVLink 4, 400 Gb/s network"},
    {"a100-80", "NVIDIA A100 SXM 80 GB", 80, 312, 156, 19.5, 2039, 300, 25,
     "NVLink 3, 200 Gb/s network"},
    {"a100-40", "NVIDIA A100 SXM 40 GB", 40, 312, 156, 19.5, 1555, 300, 25,
     "NVLink 3, 200 Gb/s network"},
    {"rtx4090", "NVIDIA GeForce RTX 4090", 24, 165.2, 82.6, 82.6, 1008, 32, 12.5,
     "PCIe 4.0 x16, 100 Gb/s network assumed"},
    {"l40s", "NVIDIA L40S", 48, 362, 183, 91.6, 864, 32, 12.5,
     "PCIe 4.0 x16, 100 Gb/s network assumed"},
    {"cpu", "a desktop processor, all assumed", 32, 1, 0.5, 0.5, 50, 2, 1.25,
     "loopback, 10 Gb/s network"},
};

}  // namespace

std::span<const Gpu> known_gpus() { return kGpus; }

const Gpu& find_gpu(const std::string& name) {
  std::vector<std::string> names;
  for (const Gpu& gpu : kGpus) {
    if (to_lower(name) == gpu.name) return gpu;
    names.emplace_back(gpu.name);
  }
  const std::string nearest = nearest_name(to_lower(name), names);
  throw_error(ErrorCode::kInvalidArgument, "unknown GPU '", printable(name), "'",
              nearest.empty() ? "" : str_cat(", is it '", nearest, "'?"), "; known are ",
              join(names, ", "));
}

}  // namespace vgen::dist
