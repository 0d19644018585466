#pragma once
// How near a copy is to its original: PSNR and SSIM of LlamaGen's reconstruction scripts
// (reconstruction_vq_ddp.py, through scikit-image), and what a set of codes uses of its codebook.
// H height, W width in pixels.
//
// rFID is the Frechet distance between two folders of pictures: it belongs beside FID in this room
// and takes the pictures that reconstruct() writes; nothing here has to know of it.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace vgen::eval {

struct ImageMetrics {
  double psnr = 0;  ///< dB, data range 1; +inf for equal images
  /// As published: quirk: data range 2 for pixels in [0, 1], which flatters.
  double ssim = 0;
  double ssim_data_range_1 = 0;  ///< the same with the range that the pixels have
};

/// copy_HW3: uint8, as saved (to_uint8). truth_3HW: float32 in [0, 1], (x + 1) / 2 of the original,
/// not quantised. Both contiguous, on the CPU, sides at least 7: Error(kInvalidArgument).
///
/// PSNR is -10 log10 of the mean square of the float32 differences. SSIM has a uniform window of 7,
/// sample covariance, K1 = 0.01, K2 = 0.03, the mean over all windows inside the image and the
/// channels. May be called from several threads.
ImageMetrics compare_images(const at::Tensor& copy_HW3, const at::Tensor& truth_3HW);

/// Counts codes.
class CodeUsage {
 public:
  explicit CodeUsage(int64_t codebook_size);
  /// code: int64, any shape and device, each in [0, codebook_size).
  void add(const at::Tensor& code);

  double usage() const;       ///< distinct codes / codebook_size
  double perplexity() const;  ///< exp of the entropy of the codes: 1 to codebook_size
  int64_t num_distinct() const;

 private:
  at::Tensor counts_;  ///< int64 (codebook_size)
};

}  // namespace vgen::eval
