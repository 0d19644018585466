#include "var/golden_var.h"

#include <catch2/catch.hpp>

#include "support/support.h"
#include "vgen/checkpoint/named_tensors.h"

namespace vgen::test {

var::VarConfig golden_var_config(const std::string& name) {
  const bool is_trained = name == "train_var", is_shared = name == "var_saln";
  const bool begins_with_2 = name == "var_from_2";
  if (!is_trained && !is_shared && !begins_with_2 && name != "var") {
    FAIL("no golden model is called " << name);
  }
  var::VarConfig config;
  config.depth = 2;
  config.dim = is_trained || begins_with_2 ? 32 : 48;
  config.n_head = name == "var" ? 3 : 2;
  config.patch_nums = {1, 2, 3, 4};
  if (begins_with_2) config.patch_nums = {2, 3, 4};
  config.num_classes = 10;
  config.codebook_size = 64;
  config.z_channels = 16;
  config.shared_adaln = is_shared;
  config.attn_l2_norm = !is_shared;
  config.class_dropout_prob = 0;
  config.drop_path_rate = 0;
  return config;
}

var::VarTransformer golden_var(const std::string& name) {
  var::VarTransformer model(golden_var_config(name));
  checkpoint::load_into(*model, io::load_state_dict(golden(name + "/var.pth")));
  model->eval();
  return model;
}

}  // namespace vgen::test
