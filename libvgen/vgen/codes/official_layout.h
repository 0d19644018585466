#pragma once
// Codes as LlamaGen's Python code keeps them (extract_codes_c2i.py, dataset/imagenet.py):
//
//   <path>/imagenet256_codes/<k>.npy    int64 (1, A, T), A crops of image k
//   <path>/imagenet256_labels/<k>.npy   int64 (1)
//
// Of two published sets the second (range 1.05) is beside the first: `..._ten_crop/` and
// `..._ten_crop_105/`; where both are there LlamaGen takes either with probability 0.5. Nothing in
// these files says which tokenizer made them. Differences to its reader: any number of images, gaps
// between the numbers, any dataset name, and a random crop whether or not the path has "flip" in it
// (its reader needs that word).

#include <memory>
#include <string>

#include "vgen/codes/code_dataset.h"

namespace vgen::codes {

/// `path`: the folder above, or its `_codes` folder. (1, T) and (A, T) are read too. The images are
/// listed, sorted by number; crops and tokens are those of the first, and every other image must
/// have as many. Throws Error(kNotFound, kInvalidArgument, kDataCorrupt).
std::unique_ptr<CodeDataset::Source> open_official(const std::string& path,
                                                   const OpenOptions& options);

/// Writes images of one crop set, numbered by their image_index(); numbers that are there whole are
/// left as they are. `path` must have "flip" in it if there are several crops, for the sake of the
/// Python reader: Error(kInvalidArgument). `begin`, `end`: images of `dataset`.
class OfficialWriter {
 public:
  /// One set goes to `path`; with two, `path` must end in "ten_crop" and the second goes to
  /// `path`_105, where the Python reader looks: Error(kInvalidArgument).
  OfficialWriter(const std::string& path, const CodeInfo& info);

  /// Writes one image. `code_AT`: all crops of all sets. Throws Error(kUnavailable).
  void write(int64_t image, int64_t label, std::span<const int64_t> code_AT) const;
  bool has(int64_t image) const;  ///< written whole

 private:
  struct Folder {
    std::string codes, labels;
    int64_t first_crop = 0;
    int64_t num_crops = 0;
  };
  std::vector<Folder> folders_;
  int64_t num_tokens_ = 0;
};

}  // namespace vgen::codes
