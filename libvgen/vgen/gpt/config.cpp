#include "vgen/gpt/config.h"

#include <cmath>

namespace vgen::gpt {

int64_t GptConfig::ffn_dim() const {
  int64_t width = 2 * (4 * dim) / 3;
  if (ffn_dim_multiplier > 0) {
    width = static_cast<int64_t>(ffn_dim_multiplier * static_cast<double>(width));
  }
  return (width + multiple_of - 1) / multiple_of * multiple_of;
}

int64_t GptConfig::grid_size() const {
  return std::llround(std::sqrt(static_cast<double>(block_size)));
}

void GptConfig::validate() const {
  require(grid_size() * grid_size() == block_size, ErrorCode::kInvalidArgument,
          "model.block_size: ", block_size,
          " is not the square of a grid size, such as 256 = 16^2");
  require(dim % n_head == 0 && head_dim() % 4 == 0, ErrorCode::kInvalidArgument, "model.dim: ", dim,
          " over n_head ", n_head, " must be a whole multiple of 4");
  require(n_head % num_kv_heads() == 0, ErrorCode::kInvalidArgument,
          "model.n_kv_head: ", num_kv_heads(), " does not divide n_head ", n_head);
  require(model_type != "c2i" || cls_token_num == 1, ErrorCode::kInvalidArgument,
          "model.cls_token_num: a class-conditional model has 1 condition token, found ",
          cls_token_num);
}

GptConfig gpt_size(const std::string& name) {
  struct Size {
    const char* name;
    int64_t n_layer, n_head, dim;
  };
  static constexpr Size kSizes[] = {
      {"B", 12, 12, 768},     {"L", 24, 16, 1024},  {"XL", 36, 20, 1280}, {"XXL", 48, 24, 1536},
      {"XXXL", 48, 40, 2560}, {"1B", 22, 32, 2048}, {"3B", 24, 32, 3200}, {"7B", 32, 32, 4096}};
  std::vector<std::string> names;
  for (const Size& size : kSizes) {
    if (size.name == name) {
      GptConfig config;
      config.n_layer = size.n_layer;
      config.n_head = size.n_head;
      config.dim = size.dim;
      return config;
    }
    names.emplace_back(size.name);
  }
  throw_error(ErrorCode::kInvalidArgument, "GPT size '", printable(name), "': expected one of ",
              join(names, ", "));
}

}  // namespace vgen::gpt
