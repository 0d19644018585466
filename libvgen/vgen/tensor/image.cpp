#include "vgen/tensor/image.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "vgen/core/error.h"

namespace vgen {

at::Tensor to_uint8(const at::Tensor& image_B3HW) {
  require(image_B3HW.dim() == 4 && image_B3HW.size(1) == 3, ErrorCode::kInvalidArgument,
          "to_uint8: expected (B, 3, H, W), found ", format_shape(image_B3HW.sizes().vec()));
  return image_B3HW.detach()
      .to(at::kFloat)
      .mul(127.5)
      .add_(128)
      .clamp_(0, 255)
      .to(at::kByte)
      .permute({0, 2, 3, 1})
      .contiguous()
      .cpu();
}

at::Tensor image_grid(const at::Tensor& image_BHW3, int64_t num_columns, int64_t padding) {
  require(image_BHW3.dim() == 4 && image_BHW3.size(3) == 3 && image_BHW3.size(0) > 0 &&
              num_columns > 0 && padding >= 0,
          ErrorCode::kInvalidArgument, "image_grid: expected (B, H, W, 3) with B > 0, found ",
          format_shape(image_BHW3.sizes().vec()));
  const int64_t num_images = image_BHW3.size(0);
  const int64_t height = image_BHW3.size(1), width = image_BHW3.size(2);
  num_columns = std::min(num_columns, num_images);
  const int64_t num_rows = (num_images + num_columns - 1) / num_columns;
  auto grid = at::full(
      {num_rows * (height + padding) + padding, num_columns * (width + padding) + padding, 3}, 255,
      at::kByte);
  for (int64_t i = 0; i < num_images; ++i) {
    const int64_t top = padding + i / num_columns * (height + padding);
    const int64_t left = padding + i % num_columns * (width + padding);
    grid.narrow(0, top, height).narrow(1, left, width).copy_(image_BHW3[i]);
  }
  return grid;
}

at::Tensor psnr_B(const at::Tensor& image_B3HW, const at::Tensor& recon_B3HW) {
  require(image_B3HW.sizes() == recon_B3HW.sizes(), ErrorCode::kInvalidArgument,
          "psnr_B: images of ", format_shape(image_B3HW.sizes().vec()), " and ",
          format_shape(recon_B3HW.sizes().vec()));
  const auto recon = to_uint8(recon_B3HW).to(at::kDouble).div_(255).permute({0, 3, 1, 2});
  const auto image = image_B3HW.detach().cpu().to(at::kDouble).add(1).div_(2);
  const auto mse_B = (image - recon).square_().flatten(1).mean(1);
  return mse_B.reciprocal().log10_().mul_(10);
}

}  // namespace vgen
