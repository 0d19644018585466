#include "vgen/infer/gpt_weights.h"

#include "vgen/checkpoint/named_tensors.h"

namespace vgen::infer {

NamedShapes gpt_shapes(const gpt::GptConfig& c) {
  NamedShapes list;
  if (c.model_type == "c2i") {
    list.push_back({"cls_embedding.embedding_table.weight", {c.class_rows(), c.dim}});
  } else {
    list.push_back({"cls_embedding.uncond_embedding", {c.cls_token_num, c.caption_dim}});
    list.push_back({"cls_embedding.cap_proj.fc1.weight", {c.dim, c.caption_dim}});
    list.push_back({"cls_embedding.cap_proj.fc2.weight", {c.dim, c.dim}});
  }
  list.push_back({"tok_embeddings.weight", {c.vocab_size, c.dim}});
  for (int64_t i = 0; i < c.n_layer; ++i) {
    const std::string layer = str_cat("layers.", i, ".");
    list.push_back({layer + "attention.wqkv.weight",
                    {(c.n_head + 2 * c.num_kv_heads()) * c.head_dim(), c.dim}});
    list.push_back({layer + "attention.wo.weight", {c.dim, c.dim}});
    list.push_back({layer + "feed_forward.w1.weight", {c.ffn_dim(), c.dim}});
    list.push_back({layer + "feed_forward.w3.weight", {c.ffn_dim(), c.dim}});
    list.push_back({layer + "feed_forward.w2.weight", {c.dim, c.ffn_dim()}});
    list.push_back({layer + "attention_norm.weight", {c.dim}});
    list.push_back({layer + "ffn_norm.weight", {c.dim}});
  }
  list.push_back({"norm.weight", {c.dim}});
  list.push_back({"output.weight", {c.vocab_size, c.dim}});
  return list;
}

GptWeights gpt_weights(const gpt::GptConfig& config, const io::StateDict& state) {
  config.validate();
  return {collect_weights(gpt_shapes(config), state, "this GPT"), config};
}

GptWeights gpt_weights(const gpt::GptConfig& config, const torch::nn::Module& module) {
  io::StateDict state;
  state.source = "model";
  state.tensors = checkpoint::as_arrays(checkpoint::named_state(module));
  return gpt_weights(config, state);
}

}  // namespace vgen::infer
