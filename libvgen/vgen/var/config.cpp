#include "vgen/var/config.h"

#include <cmath>

#include "vgen/tokenizer/multi_scale_quantizer.h"

namespace vgen::var {

int64_t VarConfig::ffn_dim() const {
  return std::llround(mlp_ratio * static_cast<double>(width()));
}

int64_t VarConfig::scale_end(int64_t k) const {
  int64_t end = 0;
  for (int64_t i = 0; i <= k; ++i) {
    const int64_t side = patch_nums.at(static_cast<size_t>(i));
    end += side * side;
  }
  return end;
}

double VarConfig::max_drop_path() const {
  return drop_path_rate < 0 ? 0.1 * static_cast<double>(depth) / 24 : drop_path_rate;
}

void VarConfig::validate() const {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  tokenizer::validate_patch_nums(patch_nums, "model.patch_nums");
  require(width() % heads() == 0, kInvalid, "model.dim: ", width(),
          " must be a whole multiple of n_head ", heads());
  require(drop_path_rate == -1 || drop_path_rate >= 0, kInvalid,
          "model.drop_path_rate: ", format_double(drop_path_rate), " must be -1 or from 0 to 1");
  require(init_std == -1 || init_std >= 0, kInvalid, "model.init_std: ", format_double(init_std),
          " must be -1 or at least 0");
}

VarConfig var_size(const std::string& name) {
  VarConfig config;
  if (name == "d36-s") {
    config.depth = 36;
    config.shared_adaln = true;
    config.patch_nums = {1, 2, 3, 4, 6, 9, 13, 18, 24, 32};
    return config;
  }
  for (const int64_t depth : {12, 16, 20, 24, 30}) {
    config.depth = depth;
    if (name == str_cat("d", depth)) return config;
  }
  throw_error(ErrorCode::kInvalidArgument, "VAR size '", printable(name),
              "': expected one of d12, d16, d20, d24, d30, d36-s");
}

}  // namespace vgen::var
