#include "vgen/kernels/dropout.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "vgen/kernels/detail/row_kernels.h"
#include "vgen/kernels/detail/tensor_elements.h"

namespace vgen::kernels {

bool is_dropout_input(const at::Tensor& x) { return has_elements(x); }

at::Tensor keyed_dropout(const at::Tensor& x, double p, uint64_t key, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_dropout_input(x) && p >= 0 && p < 1);
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty(in.sizes(), in.options());
  const DropoutArgs args{.count = in.numel(),
                         .x = elements_of(in),
                         .out = elements_of(out),
                         .key = key,
                         .threshold = static_cast<uint32_t>(std::ldexp(p, 32)),
                         .scale = static_cast<float>(1 / (1 - p))};
  const RowKernels& kernels = row_kernels(isa);
  const int64_t num_spans = (args.count + kDropoutSpan - 1) / kDropoutSpan;
  at::parallel_for(0, num_spans, rows_per_task(kDropoutSpan),
                   [&](int64_t begin, int64_t end) { kernels.dropout(args, begin, end); });
  return out;
}

}  // namespace vgen::kernels
