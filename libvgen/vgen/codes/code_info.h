#pragma once
// What the codes of a dataset have in common: which tokenizer made them, of which crops, in which
// grid. It stands in the index of a code dataset, and training is refused where it does not fit.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "vgen/io/dtype.h"
#include "vgen/io/json.h"

namespace vgen::codes {

/// How an image becomes one or more squares. LlamaGen's extract_codes_c2i.py knows these:
///
///   center         the centre crop                                              1 crop
///   center_flip    the centre crop and its mirror image                         2 crops
///   ten_crop:1.1   centre crop of floor(size * 1.1), of it torchvision's        10 crops
///                  TenCrop: corners (top left, top right, bottom left, bottom right) and
///                  middle, then the same five places of the mirrored image
///
/// and for images whose mirror image is something else (digits, text):
///
///   five_crop:1.1  the first five of ten_crop:1.1                               5 crops
struct CropSet {
  enum class Kind { kCenter, kCenterFlip, kTenCrop, kFiveCrop };
  Kind kind = Kind::kCenter;
  double range = 1.0;  ///< kTenCrop, kFiveCrop: at least 1; published: 1.1, 1.05

  int64_t count() const;     ///< crops that it makes of an image
  int64_t middle() const;    ///< the crop that is the plain one, for validation
  std::string name() const;  ///< as above; parse_crop_set reads it back
  bool operator==(const CropSet&) const = default;
};

/// "ten_crop" is "ten_crop:1.1". Throws Error(kInvalidArgument).
CropSet parse_crop_set(std::string_view name);

/// N images of A crops of T tokens each. Crops of several sets lie one after the other in A.
struct CodeInfo {
  std::string tokenizer;             ///< fingerprint, infer/fingerprint.h; "" = unknown
  int64_t codebook_size = 0;         ///< every code is below; 0 = unknown
  int64_t image_size = 0;            ///< side of the crops, pixels; 0 = unknown
  std::vector<int64_t> grid;         ///< {h, w}; raster order
  std::vector<int64_t> patch_nums;   ///< VAR: sides of the scales, one after the other in T
  std::vector<CropSet> crop_sets;    ///< at least one
  std::string precision;             ///< that the tokenizer computed in; "" = unknown
  std::vector<std::string> classes;  ///< names by label; empty = unknown or unlabelled

  int64_t num_tokens() const;  ///< T: h * w, or the sum of the squares of patch_nums
  int64_t num_crops() const;   ///< A
  /// uint16 when the vocabulary allows, else int32.
  io::Dtype dtype() const;
  /// Place on A of the first crop of a set.
  int64_t first_crop(size_t crop_set) const;
};

/// Throws Error(kDataCorrupt) for what no dataset can be.
void validate(const CodeInfo& info);

/// All but the classes.
io::Json info_to_json(const CodeInfo& info);
/// Checked. Throws Error(kDataCorrupt).
CodeInfo info_from_json(const io::Json& json);

/// What a model asks of the codes it learns from.
struct CodeRequirements {
  std::string tokenizer = {};      ///< fingerprint; "" = any
  std::vector<int64_t> grid = {};  ///< {h, w}; empty = any
  int64_t num_tokens = 0;          ///< block_size; 0 = any
  int64_t codebook_size = 0;       ///< vocab_size; 0 = any
  int64_t num_classes = 0;         ///< every image has a label below it; 0 = no labels are needed
};

/// Throws Error(kInvalidArgument) for the first thing that does not fit, with both values and what
/// to do. What a dataset does not know (the official layout) is not compared.
void check_fits(const CodeInfo& info, const CodeRequirements& required);

}  // namespace vgen::codes
