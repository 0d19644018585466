#include "tokenizer/golden_weights.h"

#include "support/support.h"
#include "vgen/checkpoint/named_tensors.h"
#include "vgen/io/npy.h"

namespace vgen::test {

torch::Tensor golden_tensor(const std::string& name) {
  return checkpoint::as_tensor(io::read_npy(golden(name))).clone();
}

void load_golden(torch::nn::Module& module, const std::string& name, const std::string& key) {
  checkpoint::load_into(module, io::load_state_dict(golden(name), key));
}

}  // namespace vgen::test
