#include "vgen/infer/drawing_path.h"

#include "vgen/core/strings.h"
#include "vgen/infer/detail/step_graphs.h"
#include "vgen/kernels/cpu_isa.h"
#include "vgen/tensor/device.h"

namespace vgen::infer {

std::string drawing_path(const std::string& device) {
  const c10::Device place = parse_device(device);
  if (place.is_cpu()) {
    return str_cat("cpu, ", kernels::cpu_isa_name(kernels::best_cpu_isa()), " kernels");
  }
  const bool has_graphs = make_step_graphs(place)->has_graphs();
  return str_cat(place.str(), has_graphs ? ", CUDA graphs" : ", LibTorch's operators");
}

}  // namespace vgen::infer
