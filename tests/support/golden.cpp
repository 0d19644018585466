#include "support/golden.h"

#include "support/support.h"
#include "vgen/checkpoint/named_tensors.h"
#include "vgen/io/npy.h"

namespace vgen::test {

torch::Tensor golden_tensor(const std::string& name) {
  return checkpoint::as_tensor(io::read_npy(golden(name))).clone();
}

}  // namespace vgen::test
