#include "vgen/kernels/rotary.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstring>

#include "vgen/kernels/detail/cuda_kernels.h"
#include "vgen/kernels/detail/row_kernels.h"
#include "vgen/kernels/detail/tensor_elements.h"

namespace vgen::kernels {
namespace {

/// Heads whose channels lie side by side.
struct Heads {
  explicit Heads(const at::Tensor& x_BSGD)
      : tensor(x_BSGD.stride(3) == 1 ? x_BSGD : x_BSGD.contiguous()),
        elements(elements_of(tensor)),
        count(tensor.size(2)),
        stride(tensor.stride(2)) {}

  /// Those at a position, from head `first` on.
  Elements at(int64_t batch, int64_t position, int64_t first = 0) const {
    return behind(elements,
                  batch * tensor.stride(0) + position * tensor.stride(1) + first * stride);
  }

  at::Tensor tensor;
  Elements elements;
  int64_t count, stride;
};

void copy_heads(const Heads& from, Elements in, Elements out, int64_t count, int64_t head_dim) {
  for (int64_t h = 0; h < count; ++h) {
    std::memcpy(behind(out, h * head_dim).data, behind(in, h * from.stride).data,
                static_cast<size_t>(head_dim * from.tensor.element_size()));
  }
}

/// body(batch, position) for all positions in parallel.
template <class Body>
void for_positions(const at::Tensor& out_BSGD, const Body& body) {
  const int64_t batch = out_BSGD.size(0), length = out_BSGD.size(1);
  const int64_t row = out_BSGD.size(2) * out_BSGD.size(3);
  at::parallel_for(0, batch * length, rows_per_task(row), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i / length, i % length);
  });
}

}  // namespace

bool is_rotary_input(const at::Tensor& heads_BSGD, const at::Tensor& rope_SP2) {
  const bool is_here =
      heads_BSGD.is_cuda() ? is_cuda_input(heads_BSGD, kAnyColumns) : has_elements(heads_BSGD);
  return is_here && heads_BSGD.dim() == 4 && heads_BSGD.size(3) % 2 == 0 &&
         rope_SP2.device() == heads_BSGD.device() && rope_SP2.scalar_type() == at::kFloat &&
         rope_SP2.dim() == 3 && rope_SP2.size(0) == heads_BSGD.size(1) &&
         rope_SP2.size(1) * 2 == heads_BSGD.size(3) && rope_SP2.size(2) == 2;
}

at::Tensor rotate_heads(const at::Tensor& heads_BSGD, const at::Tensor& rope_SP2,
                        int64_t num_turned, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_rotary_input(heads_BSGD, rope_SP2) && num_turned <= heads_BSGD.size(2));
  if (heads_BSGD.is_cuda()) return cuda_kernels()->rotate_heads(heads_BSGD, rope_SP2, num_turned);
  const at::Tensor rope = rope_SP2.contiguous();
  const int64_t head_dim = heads_BSGD.size(3);
  at::Tensor out_BSGD = at::empty(heads_BSGD.sizes(), heads_BSGD.options());
  const Heads in(heads_BSGD), out(out_BSGD);
  const RowKernels& kernels = row_kernels(isa);
  for_positions(out_BSGD, [&](int64_t b, int64_t s) {
    kernels.rotate({.in = in.at(b, s),
                    .out = out.at(b, s),
                    .in_stride = in.stride,
                    .out_stride = out.stride,
                    .heads = num_turned,
                    .head_dim = head_dim,
                    .rope = rope.const_data_ptr<float>() + s * head_dim});
    copy_heads(in, in.at(b, s, num_turned), out.at(b, s, num_turned), in.count - num_turned,
               head_dim);
  });
  return out_BSGD;
}

at::Tensor rotate_heads_gradient(const HeadGradients& gradients, const at::Tensor& rope_SP2,
                                 CpuIsa isa) {
  for (const at::Tensor& heads : {gradients.query_BHSD, gradients.key_BKSD, gradients.value_BKSD}) {
    TORCH_INTERNAL_ASSERT(is_rotary_input(heads.transpose(1, 2), rope_SP2) &&
                          heads.scalar_type() == gradients.query_BHSD.scalar_type());
  }
  if (gradients.query_BHSD.is_cuda()) {
    return cuda_kernels()->rotate_heads_gradient(gradients, rope_SP2);
  }
  const Heads query(gradients.query_BHSD.transpose(1, 2)), key(gradients.key_BKSD.transpose(1, 2));
  const Heads value(gradients.value_BKSD.transpose(1, 2));
  const at::Tensor rope = rope_SP2.contiguous();
  const int64_t head_dim = query.tensor.size(3);
  at::Tensor out_BSGD = at::empty(
      {query.tensor.size(0), query.tensor.size(1), query.count + key.count + value.count, head_dim},
      query.tensor.options());
  const Heads out(out_BSGD);
  const RowKernels& kernels = row_kernels(isa);
  for_positions(out_BSGD, [&](int64_t b, int64_t s) {
    RotateArgs args{.in = query.at(b, s),
                    .out = out.at(b, s),
                    .in_stride = query.stride,
                    .out_stride = out.stride,
                    .heads = query.count,
                    .head_dim = head_dim,
                    .rope = rope.const_data_ptr<float>() + s * head_dim,
                    .is_inverse = true};
    kernels.rotate(args);
    args.in = key.at(b, s);
    args.out = out.at(b, s, query.count);
    args.in_stride = key.stride;
    args.heads = key.count;
    kernels.rotate(args);
    copy_heads(value, value.at(b, s), out.at(b, s, query.count + key.count), value.count, head_dim);
  });
  return out_BSGD;
}

}  // namespace vgen::kernels
