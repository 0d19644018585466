#include "vgen/tensor/tf32.h"

#include <ATen/Context.h>

namespace vgen {

void allow_tf32(bool is_allowed) {
  at::globalContext().setAllowTF32CuBLAS(is_allowed);
  at::globalContext().setAllowTF32CuDNN(is_allowed);
}

bool uses_tf32(c10::Device device) {
  return device.is_cuda() && at::globalContext().allowTF32CuBLAS();
}

}  // namespace vgen
