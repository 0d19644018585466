#include "vgen/infer/gpt_weights.h"

#include <utility>
#include <vector>

#include "vgen/checkpoint/named_tensors.h"

namespace vgen::infer {

namespace {

using Shape = std::vector<int64_t>;

std::vector<std::pair<std::string, Shape>> expected_tensors(const gpt::GptConfig& c) {
  std::vector<std::pair<std::string, Shape>> list;
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

// "a, b, c and 5 more"
std::string first_few(const std::vector<std::string>& names) {
  constexpr size_t kShown = 4;
  if (names.size() <= kShown) return join(names, ", ");
  return str_cat(join({names.begin(), names.begin() + kShown}, ", "), " and ",
                 names.size() - kShown, " more");
}

}  // namespace

const at::Tensor& GptWeights::at(const std::string& name) const {
  const auto found = tensors.find(name);
  require(found != tensors.end(), ErrorCode::kNotFound, source, ": no tensor '", name, "'");
  return found->second;
}

GptWeights gpt_weights(const gpt::GptConfig& config, const io::StateDict& state) {
  config.validate();
  std::unordered_map<std::string, const io::Array*> by_name;
  for (const io::NamedArray& tensor : state.tensors) by_name[tensor.name] = &tensor.array;
  GptWeights weights{.config = config, .source = state.source};
  std::vector<std::string> missing, mismatched;
  for (const auto& [name, shape] : expected_tensors(config)) {
    const auto found = by_name.find(name);
    if (found == by_name.end()) {
      missing.push_back(name);
      continue;
    }
    const io::Array& array = *found->second;
    if (array.shape != shape) {
      mismatched.push_back(
          str_cat(name, " is ", format_shape(array.shape), ", expected ", format_shape(shape)));
      continue;
    }
    require(array.dtype == io::Dtype::kFloat32 || array.dtype == io::Dtype::kBFloat16 ||
                array.dtype == io::Dtype::kFloat16,
            ErrorCode::kInvalidArgument, state.source, ": ", name, " holds ",
            io::dtype_name(array.dtype), ", expected float32, bfloat16 or float16");
    weights.tensors.emplace(name, checkpoint::as_tensor(array));
  }
  if (!missing.empty() || !mismatched.empty()) {
    std::string message = str_cat(state.source, ": not the weights of this GPT");
    if (!mismatched.empty()) message += "; " + first_few(mismatched);
    if (!missing.empty()) message += "; missing " + first_few(missing);
    throw Error(ErrorCode::kInvalidArgument, message);
  }
  return weights;
}

GptWeights gpt_weights(const gpt::GptConfig& config, const torch::nn::Module& module) {
  io::StateDict state;
  state.source = "model";
  state.tensors = checkpoint::as_arrays(checkpoint::named_state(module));
  return gpt_weights(config, state);
}

}  // namespace vgen::infer
