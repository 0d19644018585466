#include "vgen/nn/rotary.h"

#include <torch/torch.h>

#include "vgen/core/error.h"
#include "vgen/kernels/rotary.h"

namespace vgen::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class RotaryHeadsFunction : public torch::autograd::Function<RotaryHeadsFunction> {
 public:
  /// G = H + 2 K heads. Queries, keys, values: views of one new tensor.
  static variable_list forward(AutogradContext* context, const torch::Tensor& heads_BSGD,
                               const torch::Tensor& rope_SP2, int64_t n_kv_head) {
    context->save_for_backward({rope_SP2});
    const int64_t num_turned = heads_BSGD.size(2) - n_kv_head;
    const auto turned_BGSD =
        kernels::rotate_heads(heads_BSGD, rope_SP2, num_turned).transpose(1, 2);
    return turned_BGSD.split_with_sizes({num_turned - n_kv_head, n_kv_head, n_kv_head}, 1);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "rotary_heads has no second derivative");
    const variable_list saved = context->get_saved_variables();
    return {kernels::rotate_heads_gradient({gradients[0], gradients[1], gradients[2]}, saved[0]),
            {},
            {}};
  }
};

}  // namespace

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

AttentionHeads rotary_heads(const at::Tensor& qkv_BSF, const at::Tensor& rope_SP2, int64_t n_head,
                            int64_t n_kv_head) {
  const auto heads_BSGD = qkv_BSF.unflatten(-1, {n_head + 2 * n_kv_head, -1});
  if (kernels::is_rotary_input(heads_BSGD, rope_SP2)) {
    const auto parts = RotaryHeadsFunction::apply(heads_BSGD, rope_SP2, n_kv_head);
    return {parts[0], parts[1], parts[2]};
  }
  const auto parts = heads_BSGD.split_with_sizes({n_head, n_kv_head, n_kv_head}, 2);
  return {apply_rotary(parts[0], rope_SP2).transpose(1, 2),
          apply_rotary(parts[1], rope_SP2).transpose(1, 2), parts[2].transpose(1, 2)};
}

}  // namespace vgen::nn
