#include "vgen/kernels/nearest_code.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>

#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/kernels/detail/image_kernels.h"

namespace vgen::kernels {
namespace {

/// Codes of one vector side by side: (V / width, D, width), zeros behind the last.
at::Tensor interleave(const at::Tensor& codebook_VD, int64_t width, int64_t padded_codes) {
  at::Tensor padded_VD = codebook_VD;
  if (padded_codes != codebook_VD.size(0)) {
    padded_VD = at::constant_pad_nd(codebook_VD, {0, 0, 0, padded_codes - codebook_VD.size(0)});
  }
  return padded_VD.view({padded_codes / width, width, -1}).transpose(1, 2).contiguous();
}

at::Tensor search_on_cpu(const at::Tensor& z_ND, const at::Tensor& codebook_VD, CpuIsa isa) {
  const ImageKernels& kernels = image_kernels(isa);
  const int64_t num_codes = codebook_VD.size(0);
  const int64_t padded_codes = (num_codes + kernels.width - 1) / kernels.width * kernels.width;
  const at::Tensor codes = interleave(codebook_VD, kernels.width, padded_codes);
  const at::Tensor squares =
      at::full({padded_codes}, std::numeric_limits<float>::infinity(), z_ND.options());
  squares.slice(0, 0, num_codes).copy_(codebook_VD.square().sum(1));
  const at::Tensor index_N = at::empty({z_ND.size(0)}, z_ND.options().dtype(at::kLong));
  at::parallel_for(0, z_ND.size(0), 16, [&](int64_t begin, int64_t end) {
    kernels.nearest_code(z_ND.const_data_ptr<float>(), z_ND.size(1), codes.const_data_ptr<float>(),
                         squares.const_data_ptr<float>(), padded_codes, begin, end,
                         index_N.mutable_data_ptr<int64_t>());
  });
  return index_N;
}

/// Blocks of rows, so that at most 64 Mi distances exist at once.
at::Tensor search_in_blocks(const at::Tensor& z_ND, const at::Tensor& codebook_VD) {
  const at::Tensor square_V = codebook_VD.square().sum(1);
  const at::Tensor index_N = at::empty({z_ND.size(0)}, z_ND.options().dtype(at::kLong));
  const int64_t rows = std::max<int64_t>(1, (int64_t{64} << 20) / codebook_VD.size(0));
  for (int64_t row = 0; row < z_ND.size(0); row += rows) {
    const at::Tensor z = z_ND.slice(0, row, row + rows);
    const at::Tensor distance = at::addmm(square_V, z, codebook_VD.t(), 1, -2);
    index_N.slice(0, row, row + rows).copy_(distance.argmin(1));
  }
  return index_N.masked_fill(z_ND.isnan().any(1), 0);
}

}  // namespace

at::Tensor nearest_code(const at::Tensor& z_ND, const at::Tensor& codebook_VD, CpuIsa isa) {
  require(z_ND.dim() == 2 && codebook_VD.dim() == 2 && z_ND.size(1) == codebook_VD.size(1) &&
              codebook_VD.size(0) > 0,
          ErrorCode::kInvalidArgument, "nearest code: rows ", format_shape(z_ND.sizes().vec()),
          " and codebook ", format_shape(codebook_VD.sizes().vec()),
          ", expected (N, D) and (V, D) with V > 0");
  require(z_ND.scalar_type() == at::kFloat && codebook_VD.scalar_type() == at::kFloat,
          ErrorCode::kInvalidArgument, "nearest code: rows of ", c10::toString(z_ND.scalar_type()),
          " and codes of ", c10::toString(codebook_VD.scalar_type()), ", expected Float");
  const at::NoGradGuard no_grad;
  const at::Tensor z = z_ND.detach().contiguous(), codebook = codebook_VD.detach().contiguous();
  if (z.is_cpu() && codebook.is_cpu()) return search_on_cpu(z, codebook, isa);
  return search_in_blocks(z, codebook);
}

}  // namespace vgen::kernels
