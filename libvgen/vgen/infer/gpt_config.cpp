// The config of a GPT read off its weights.

#include <cmath>

#include "vgen/infer/load_gpt.h"

namespace vgen::infer {

namespace {

// A matrix that must be there.
std::pair<int64_t, int64_t> matrix(const io::StateDict& state, const std::string& name) {
  const io::Array* array = state.find(name);
  require(array != nullptr, ErrorCode::kInvalidArgument, state.source,
          ": not the weights of a LlamaGen GPT: no tensor '", name, "'");
  require(array->shape.size() == 2 && array->shape[0] > 0 && array->shape[1] > 0,
          ErrorCode::kInvalidArgument, state.source, ": ", name, " is ", format_shape(array->shape),
          ", expected a matrix");
  return {array->shape[0], array->shape[1]};
}

int64_t count_layers(const io::StateDict& state) {
  int64_t count = 0;
  while (state.find(str_cat("layers.", count, ".attention.wqkv.weight")) != nullptr) ++count;
  require(count > 0, ErrorCode::kInvalidArgument, state.source,
          ": not the weights of a LlamaGen GPT: no tensor 'layers.0.attention.wqkv.weight'");
  return count;
}

// A whole number of the file's training arguments; 0 when there is none.
int64_t argument(const io::StateDict& state, std::string_view name) {
  for (const auto& [key, text] : state.metadata) {
    int64_t value = 0;
    if (key == str_cat("args.", name) && parse_int(text, value)) return value;
  }
  return 0;
}

int64_t known_heads(int64_t n_layer, int64_t dim) {
  for (const char* name : {"B", "L", "XL", "XXL", "XXXL", "1B", "3B", "7B"}) {
    const gpt::GptConfig size = gpt::gpt_size(name);
    if (size.n_layer == n_layer && size.dim == dim) return size.n_head;
  }
  return 0;
}

// quirk: the width of the FFN follows from dim by a rule; a width that the rule does not give is
// expressed by its multiplier.
void fit_ffn(gpt::GptConfig& config, int64_t width) {
  if (config.ffn_dim() == width) return;
  config.multiple_of = 1;
  const auto base = static_cast<double>(2 * (4 * config.dim) / 3);
  config.ffn_dim_multiplier = (static_cast<double>(width) + 0.5) / base;
}

// quirk: the last row is the null class only where labels were dropped, which no shape tells.
void fit_classes(gpt::GptConfig& config, int64_t rows, const io::StateDict& state) {
  const bool has_null = argument(state, "num_classes") != rows;
  config.num_classes = has_null ? rows - 1 : rows;
  if (!has_null) config.class_dropout_prob = 0;
}

}  // namespace

GptSize infer_gpt_size(const io::StateDict& state) {
  const int64_t dim = matrix(state, "tok_embeddings.weight").second;
  return {.n_layer = count_layers(state), .dim = dim};
}

gpt::GptConfig infer_gpt_config(const io::StateDict& state, int64_t n_head) {
  gpt::GptConfig config;
  std::tie(config.vocab_size, config.dim) = matrix(state, "tok_embeddings.weight");
  config.n_layer = count_layers(state);
  fit_ffn(config, matrix(state, "layers.0.feed_forward.w1.weight").first);
  if (state.find("cls_embedding.embedding_table.weight") != nullptr) {
    fit_classes(config, matrix(state, "cls_embedding.embedding_table.weight").first, state);
  } else {
    config.model_type = "t2i";
    std::tie(config.cls_token_num, config.caption_dim) =
        matrix(state, "cls_embedding.uncond_embedding");
  }
  config.n_head = n_head != 0 ? n_head : known_heads(config.n_layer, config.dim);
  require(config.n_head > 0, ErrorCode::kInvalidArgument, state.source, ": ", config.n_layer,
          " layers of width ", config.dim,
          " are none of the published sizes, and no shape tells the number of heads; give it with "
          "--n-head, or the whole config with --config");
  const int64_t rows = matrix(state, "layers.0.attention.wqkv.weight").first;
  require(config.dim % config.n_head == 0 && rows > config.dim &&
              (rows - config.dim) % (2 * config.head_dim()) == 0,
          ErrorCode::kInvalidArgument, state.source, ": ", config.n_head,
          " heads do not fit: layers.0.attention.wqkv.weight has ", rows, " rows, dim is ",
          config.dim);
  config.n_kv_head = (rows - config.dim) / (2 * config.head_dim());
  const TrainedGrid trained = infer_trained_grid(state);
  if (trained.block_size > 0) config.block_size = trained.block_size;
  return config;
}

TrainedGrid infer_trained_grid(const io::StateDict& state) {
  const int64_t image_size = argument(state, "image_size");
  const int64_t downsample = argument(state, "downsample_size");
  const int64_t side = downsample > 0 ? image_size / downsample : 0;
  constexpr int64_t kMaxSide = 4096;  // beyond it the file is not to be believed
  if (side <= 0 || side >= kMaxSide) return {};
  return {.block_size = side * side,
          .downsample = downsample,
          .block_size_from = "args.image_size",
          .downsample_from = "args.downsample_size"};
}

}  // namespace vgen::infer
