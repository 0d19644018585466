#include "vgen/kernels/gelu.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "vgen/kernels/detail/row_kernels.h"
#include "vgen/kernels/detail/tensor_elements.h"

namespace vgen::kernels {

bool is_gelu_input(const at::Tensor& x) { return has_elements(x); }

at::Tensor gelu(const at::Tensor& x, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_gelu_input(x));
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty(in.sizes(), in.options());
  const Elements from = elements_of(in), to = elements_of(out);
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, in.numel(), rows_per_task(1),
                   [&](int64_t begin, int64_t end) { kernels.gelu(from, to, begin, end); });
  return out;
}

at::Tensor gelu_gradient(const at::Tensor& x, const at::Tensor& dy, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_gelu_input(x) && dy.sizes() == x.sizes() &&
                        dy.scalar_type() == x.scalar_type());
  const at::Tensor in = x.contiguous(), gradient = dy.contiguous();
  at::Tensor out = at::empty(in.sizes(), in.options());
  const Elements from = elements_of(in), from_gradient = elements_of(gradient);
  const Elements to = elements_of(out);
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, in.numel(), rows_per_task(1), [&](int64_t begin, int64_t end) {
    kernels.gelu_gradient(from, from_gradient, to, begin, end);
  });
  return out;
}

}  // namespace vgen::kernels
