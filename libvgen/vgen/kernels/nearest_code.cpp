#include "vgen/kernels/nearest_code.h"

#include <ATen/ATen.h>

#include "vgen/core/error.h"

namespace vgen::kernels {

at::Tensor nearest_code(const at::Tensor& z_ND, const at::Tensor& codebook_VD) {
  const at::Tensor e2_V = codebook_VD.square().sum(1);
  at::Tensor index_N = at::empty({z_ND.size(0)}, z_ND.options().dtype(at::kLong));
  constexpr int64_t kRows = 64;
  for (int64_t row = 0; row < z_ND.size(0); row += kRows) {
    const at::Tensor z = z_ND.slice(0, row, row + kRows);
    const at::Tensor d = z.square().sum(1, true) + e2_V - 2 * z.matmul(codebook_VD.t());
    index_N.slice(0, row, row + kRows).copy_(d.argmin(1));
  }
  return index_N;
}

}  // namespace vgen::kernels
