#include "vgen/kernels/swiglu.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "vgen/kernels/detail/cuda_kernels.h"
#include "vgen/kernels/detail/row_kernels.h"
#include "vgen/kernels/detail/tensor_elements.h"

namespace vgen::kernels {

bool is_swiglu_input(const at::Tensor& a, const at::Tensor& b) {
  const bool is_here = a.is_cuda() ? b.is_cuda() && is_cuda_input(a, kAnyColumns)
                                   : has_elements(a) && has_elements(b);
  return is_here && a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type();
}

at::Tensor swiglu(const at::Tensor& a, const at::Tensor& b, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_swiglu_input(a, b));
  if (a.is_cuda()) return cuda_kernels()->swiglu(a, b);
  const at::Tensor gate = a.contiguous(), up = b.contiguous();
  at::Tensor out = at::empty(a.sizes(), a.options());
  const Elements from_gate = elements_of(gate), from_up = elements_of(up), to = elements_of(out);
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, out.numel(), rows_per_task(1), [&](int64_t begin, int64_t end) {
    kernels.swiglu(from_gate, from_up, to, begin, end);
  });
  return out;
}

SwigluGradients swiglu_gradient(const at::Tensor& a, const at::Tensor& b, const at::Tensor& dy,
                                CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_swiglu_input(a, b) && is_swiglu_input(a, dy));
  if (a.is_cuda()) return cuda_kernels()->swiglu_gradient(a, b, dy);
  const at::Tensor gate = a.contiguous(), up = b.contiguous(), gradient = dy.contiguous();
  const SwigluGradients result{.a = at::empty(a.sizes(), a.options()),
                               .b = at::empty(a.sizes(), a.options())};
  const Elements from_gate = elements_of(gate), from_up = elements_of(up);
  const Elements from_gradient = elements_of(gradient);
  const Elements to_gate = elements_of(result.a), to_up = elements_of(result.b);
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, gate.numel(), rows_per_task(1), [&](int64_t begin, int64_t end) {
    kernels.swiglu_gradient(from_gate, from_up, from_gradient, to_gate, to_up, begin, end);
  });
  return result;
}

}  // namespace vgen::kernels
