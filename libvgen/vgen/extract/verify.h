#pragma once
// Do codes and decoder fit? A sample of the codes is decoded and compared with its images.

#include <cstdint>

#include "vgen/codes/code_dataset.h"
#include "vgen/data/dataset.h"
#include "vgen/infer/load_tokenizer.h"

namespace vgen::extract {

struct VerifyResult {
  int64_t crops = 0;
  int64_t codes = 0;
  int64_t equal_codes = 0;   ///< equal to those of encoding the crops again
  double psnr = 0;           ///< dB, from the mean error: decoded stored codes against the crops
  double psnr_again = 0;     ///< the same for codes that were encoded again
  double psnr_shuffled = 0;  ///< the same for the stored codes in a random order of places
};

/// Least share of equal codes. Encoding again rounds otherwise (batch size, threads, device), which
/// moves near ties; another order of codes or crops makes almost all of them differ.
inline constexpr double kLeastEqualShare = 0.9;
/// dB that the right order of codes must be better than a shuffled one by, and that stored codes
/// may be worse than those encoded again by.
inline constexpr double kLeastGain = 0.5;

/// Takes `crops` crops, images evenly spaced, crop sets and crops in turn, `batch_size` at once.
/// Throws Error(kDataCorrupt) for too few equal codes, and where another order of the stored codes
/// (shuffled, transposed, mirrored, upside down, moved by one) reconstructs the crops better: an
/// encoder and a decoder that do not agree, or a tokenizer that is not trained.
VerifyResult verify(const infer::ImageTokenizer& tokenizer, const codes::CodeDataset& codes,
                    const data::Dataset& images, int64_t crops, int64_t batch_size);

}  // namespace vgen::extract
