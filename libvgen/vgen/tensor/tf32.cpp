#include "vgen/tensor/tf32.h"

#include <ATen/Context.h>

namespace vgen {

void allow_tf32(bool is_allowed) {
  at::globalContext().setAllowTF32CuBLAS(is_allowed);
  at::globalContext().setAllowTF32CuDNN(is_allowed);
}

bool is_tf32_allowed() { return at::globalContext().allowTF32CuBLAS(); }

}  // namespace vgen
