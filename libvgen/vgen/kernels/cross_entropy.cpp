#include "vgen/kernels/cross_entropy.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "vgen/core/error.h"
#include "vgen/kernels/detail/cuda_kernels.h"
#include "vgen/kernels/detail/row_kernels.h"
#include "vgen/kernels/detail/tensor_elements.h"

namespace vgen::kernels {
namespace {

float value_at(Elements row, int64_t column) {
  return row.is_bf16 ? static_cast<float>(static_cast<const at::BFloat16*>(row.data)[column])
                     : static_cast<const float*>(row.data)[column];
}

void set_value_at(Elements row, int64_t column, float value) {
  if (row.is_bf16) {
    static_cast<at::BFloat16*>(row.data)[column] = value;
  } else {
    static_cast<float*>(row.data)[column] = value;
  }
}

void check_targets(const at::Tensor& target_N, int64_t num_classes) {
  const int64_t* target = target_N.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < target_N.size(0); ++n) {
    require(target[n] >= 0 && target[n] < num_classes, ErrorCode::kInvalidArgument,
            "cross entropy: the target ", target[n], " of row ", n, " is no class, expected 0 to ",
            num_classes - 1);
  }
}

}  // namespace

bool is_cross_entropy_input(const at::Tensor& logits_NV, const at::Tensor& target_N) {
  const bool is_here =
      logits_NV.is_cuda() ? is_cuda_input(logits_NV, kAnyColumns) : has_elements(logits_NV);
  return is_here && logits_NV.dim() == 2 && logits_NV.size(1) > 0 &&
         target_N.device() == logits_NV.device() && target_N.scalar_type() == at::kLong &&
         target_N.dim() == 1 && target_N.size(0) == logits_NV.size(0);
}

CrossEntropyResult cross_entropy(const at::Tensor& logits_NV, const at::Tensor& target_N,
                                 double label_smoothing, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_cross_entropy_input(logits_NV, target_N));
  if (logits_NV.is_cuda()) {
    return cuda_kernels()->cross_entropy(logits_NV, target_N, label_smoothing);
  }
  const at::Tensor in = logits_NV.contiguous(), targets = target_N.contiguous();
  const int64_t rows = in.size(0), columns = in.size(1);
  check_targets(targets, columns);
  const auto empty = [&] { return at::empty({rows}, at::kFloat); };
  CrossEntropyResult result{empty(), empty(), empty(), empty()};
  auto *loss = result.loss_N.mutable_data_ptr<float>(),
       *plain_loss = result.plain_loss_N.mutable_data_ptr<float>(),
       *is_right = result.is_right_N.mutable_data_ptr<float>(),
       *log_sum = result.log_sum_N.mutable_data_ptr<float>();
  const int64_t* target = targets.const_data_ptr<int64_t>();
  const Elements logits = elements_of(in);
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, rows, rows_per_task(columns), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const Elements row = behind(logits, n * columns);
      const SoftmaxRow softmax = kernels.softmax_row(row, columns);
      const double log = softmax.maximum + std::log(static_cast<double>(softmax.exp_sum));
      const double plain = log - value_at(row, target[n]);
      const double spread = log - softmax.total / static_cast<double>(columns);
      log_sum[n] = static_cast<float>(log);
      plain_loss[n] = static_cast<float>(plain);
      loss[n] = static_cast<float>(
          label_smoothing == 0 ? plain : plain + label_smoothing * (spread - plain));
      is_right[n] = softmax.best == target[n] ? 1.0F : 0.0F;
    }
  });
  return result;
}

at::Tensor cross_entropy_gradient(const at::Tensor& logits_NV, const at::Tensor& target_N,
                                  const at::Tensor& log_sum_N, const at::Tensor& dloss_N,
                                  double label_smoothing, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_cross_entropy_input(logits_NV, target_N) &&
                        dloss_N.sizes() == target_N.sizes());
  if (logits_NV.is_cuda()) {
    return cuda_kernels()->cross_entropy_gradient(logits_NV, target_N, log_sum_N, dloss_N,
                                                  label_smoothing);
  }
  const at::Tensor in = logits_NV.contiguous(), targets = target_N.contiguous();
  const at::Tensor gradients = dloss_N.to(at::kFloat).contiguous();
  const int64_t columns = in.size(1);
  at::Tensor out_NV = at::empty(in.sizes(), in.options());
  const int64_t* target = targets.const_data_ptr<int64_t>();
  const float *scale = gradients.const_data_ptr<float>(),
              *log_sum = log_sum_N.const_data_ptr<float>();
  const Elements logits = elements_of(in), out = elements_of(out_NV);
  const auto of_target = static_cast<float>(1 - label_smoothing);
  const auto of_each = static_cast<float>(label_smoothing / static_cast<double>(columns));
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, in.size(0), rows_per_task(columns), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const Elements row = behind(logits, n * columns), to = behind(out, n * columns);
      kernels.softmax_gradient(row, to, columns, log_sum[n], scale[n], scale[n] * of_each);
      const float share = std::exp(value_at(row, target[n]) - log_sum[n]) - of_target - of_each;
      set_value_at(to, target[n], scale[n] * share);
    }
  });
  return out_NV;
}

}  // namespace vgen::kernels
