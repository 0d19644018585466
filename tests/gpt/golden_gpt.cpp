#include "gpt/golden_gpt.h"

#include <catch2/catch.hpp>

#include "support/support.h"
#include "vgen/checkpoint/named_tensors.h"

namespace vgen::test {

gpt::GptConfig golden_config(const std::string& name) {
  gpt::GptConfig config;
  config.n_layer = 2;
  config.token_dropout_p = config.resid_dropout_p = config.ffn_dropout_p = 0;
  config.vocab_size = 128;
  config.num_classes = 10;
  config.n_head = 2;
  if (name == "gpt_c2i") {
    config.dim = config.multiple_of = 64;
    config.block_size = 36;
  } else if (name == "gpt_gqa") {
    config.dim = 64;
    config.n_head = 4;
    config.n_kv_head = 2;
    config.multiple_of = 32;
    config.ffn_dim_multiplier = 0.8;
    config.block_size = 16;
  } else if (name == "gpt_t2i_8") {
    config.model_type = "t2i";
    config.dim = 48;
    config.multiple_of = 32;
    config.caption_dim = 32;
    config.cls_token_num = 8;
    config.block_size = 16;
  } else {
    FAIL("no golden model is called " << name);
  }
  return config;
}

gpt::Transformer golden_gpt(const std::string& name) {
  gpt::Transformer model(golden_config(name));
  checkpoint::load_into(*model, io::load_state_dict(golden(name + "/ckpt.safetensors")));
  model->eval();
  return model;
}

}  // namespace vgen::test
