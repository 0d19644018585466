#include "vgen/eval/image_metrics.h"

#include <ATen/ATen.h>

#include <array>
#include <cmath>
#include <vector>

#include "vgen/core/error.h"

namespace vgen::eval {
namespace {

constexpr int64_t kWindow = 7;
constexpr double kWindowPixels = kWindow * kWindow;

/// Sums over a window of x, y, x^2, y^2, x y.
using Sums = std::array<double, 5>;

Sums& operator+=(Sums& sums, const Sums& other) {
  for (size_t i = 0; i < sums.size(); ++i) sums[i] += other[i];
  return sums;
}

double ssim_of(const Sums& sums, double data_range) {
  const double c1 = std::pow(0.01 * data_range, 2), c2 = std::pow(0.03 * data_range, 2);
  constexpr double kSample = kWindowPixels / (kWindowPixels - 1);  // sample covariance
  const double mean_x = sums[0] / kWindowPixels, mean_y = sums[1] / kWindowPixels;
  const double var_x = kSample * (sums[2] / kWindowPixels - mean_x * mean_x);
  const double var_y = kSample * (sums[3] / kWindowPixels - mean_y * mean_y);
  const double covariance = kSample * (sums[4] / kWindowPixels - mean_x * mean_y);
  return (2 * mean_x * mean_y + c1) * (2 * covariance + c2) /
         ((mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2));
}

struct Plane {
  const uint8_t* copy;  ///< stride 3
  const float* truth;
  int64_t height, width;

  float copy_at(int64_t i) const { return static_cast<float>(copy[i * 3]) / 255.0f; }
};

struct PlaneSums {
  double square_error = 0;
  double ssim_1 = 0, ssim_2 = 0;  ///< summed over the windows, data range 1 and 2
};

/// Rows are summed over windows of 7 columns; the last 7 rows are kept and added up.
PlaneSums compare_plane(const Plane& plane) {
  PlaneSums result;
  const int64_t columns = plane.width - kWindow + 1;
  std::vector<Sums> pixels(static_cast<size_t>(plane.width));
  std::vector<std::vector<Sums>> rows(kWindow, std::vector<Sums>(static_cast<size_t>(columns)));
  for (int64_t y = 0; y < plane.height; ++y) {
    for (int64_t x = 0; x < plane.width; ++x) {
      const float a = plane.copy_at(y * plane.width + x), b = plane.truth[y * plane.width + x];
      const float difference = a - b;
      result.square_error += static_cast<double>(difference * difference);
      const double da = a, db = b;
      pixels[static_cast<size_t>(x)] = {da, db, da * da, db * db, da * db};
    }
    std::vector<Sums>& row = rows[static_cast<size_t>(y % kWindow)];
    for (size_t x = 0; x < row.size(); ++x) {
      row[x] = pixels[x];
      for (size_t i = 1; i < kWindow; ++i) row[x] += pixels[x + i];
    }
    if (y + 1 < kWindow) continue;
    for (size_t x = 0; x < row.size(); ++x) {
      Sums sums = rows[0][x];
      for (size_t i = 1; i < kWindow; ++i) sums += rows[i][x];
      result.ssim_1 += ssim_of(sums, 1);
      result.ssim_2 += ssim_of(sums, 2);
    }
  }
  return result;
}

}  // namespace

ImageMetrics compare_images(const at::Tensor& copy_HW3, const at::Tensor& truth_3HW) {
  require(copy_HW3.dim() == 3 && copy_HW3.size(2) == 3 && copy_HW3.scalar_type() == at::kByte &&
              copy_HW3.is_contiguous() && truth_3HW.scalar_type() == at::kFloat &&
              truth_3HW.is_contiguous() &&
              truth_3HW.sizes() == at::IntArrayRef({3, copy_HW3.size(0), copy_HW3.size(1)}),
          ErrorCode::kInvalidArgument,
          "compare_images: expected uint8 (H, W, 3) and float (3, H, W)", ", found ",
          format_shape(copy_HW3.sizes().vec()), " and ", format_shape(truth_3HW.sizes().vec()));
  const int64_t height = copy_HW3.size(0), width = copy_HW3.size(1);
  require(height >= kWindow && width >= kWindow, ErrorCode::kInvalidArgument, "SSIM of images of ",
          height, " x ", width, ": both sides must be at least ", kWindow);
  PlaneSums total;
  for (int64_t channel = 0; channel < 3; ++channel) {
    const PlaneSums sums = compare_plane(
        {copy_HW3.const_data_ptr<uint8_t>() + channel,
         truth_3HW.const_data_ptr<float>() + channel * height * width, height, width});
    total.square_error += sums.square_error;
    total.ssim_1 += sums.ssim_1;
    total.ssim_2 += sums.ssim_2;
  }
  const auto windows = static_cast<double>(3 * (height - kWindow + 1) * (width - kWindow + 1));
  ImageMetrics metrics;
  metrics.psnr = -10 * std::log10(total.square_error / static_cast<double>(3 * height * width));
  metrics.ssim = total.ssim_2 / windows;
  metrics.ssim_data_range_1 = total.ssim_1 / windows;
  return metrics;
}

CodeUsage::CodeUsage(int64_t codebook_size) : counts_(at::zeros({codebook_size}, at::kLong)) {}

void CodeUsage::add(const at::Tensor& code) {
  counts_ += at::bincount(code.flatten().cpu(), /*weights=*/{}, counts_.size(0));
}

int64_t CodeUsage::num_distinct() const { return counts_.count_nonzero().item<int64_t>(); }

double CodeUsage::usage() const {
  return static_cast<double>(num_distinct()) / static_cast<double>(counts_.size(0));
}

double CodeUsage::perplexity() const {
  const at::Tensor used = counts_.masked_select(counts_ > 0).to(at::kDouble);
  if (used.numel() == 0) return 0;
  const at::Tensor share = used / used.sum();
  return std::exp(-(share * share.log()).sum().item<double>());
}

}  // namespace vgen::eval
