#include "vgen/nn/rotary.h"

#include <ATen/ATen.h>

#include "vgen/core/error.h"

namespace vgen::nn {

at::Tensor rotary_table_2d(int64_t grid_size, int64_t head_dim, double base,
                           int64_t num_condition_tokens) {
  require(head_dim > 0 && head_dim % 4 == 0, ErrorCode::kInvalidArgument,
          "rotary positions: head dim ", head_dim,
          " is not a multiple of 4; choose another dim or n_head");
  const int64_t num_pairs = head_dim / 2;  // one half of them for rows, one for columns
  const auto exponent = at::arange(0, num_pairs, 2, at::kFloat) / static_cast<double>(num_pairs);
  const auto frequency = at::pow(at::scalar_tensor(base, at::kFloat), exponent).reciprocal();
  const auto angle = at::outer(at::arange(grid_size, at::kFloat), frequency);  // (grid, P / 2)
  const auto rows = angle.unsqueeze(1).expand({grid_size, grid_size, num_pairs / 2});
  const auto columns = angle.unsqueeze(0).expand({grid_size, grid_size, num_pairs / 2});
  const auto image = at::cat({rows, columns}, -1).view({grid_size * grid_size, num_pairs});
  const auto condition = at::zeros({num_condition_tokens, num_pairs, 2}, at::kFloat);
  return at::cat({condition, at::stack({image.cos(), image.sin()}, -1)}, 0);
}

at::Tensor apply_rotary(const at::Tensor& x_BSHD, const at::Tensor& rope_SP2) {
  const auto pair = x_BSHD.to(at::kFloat).unflatten(-1, {-1, 2});
  const auto first = pair.select(-1, 0), second = pair.select(-1, 1);
  const auto cosine = rope_SP2.select(-1, 0).unsqueeze(1);  // (S, 1, P)
  const auto sine = rope_SP2.select(-1, 1).unsqueeze(1);
  return at::stack({first * cosine - second * sine, second * cosine + first * sine}, -1)
      .flatten(-2)
      .to(x_BSHD.scalar_type());
}

}  // namespace vgen::nn
