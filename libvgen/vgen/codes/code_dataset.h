#pragma once
// Images as codes, ready to be learnt from: what `vgen extract` writes (code_shard.h) and the
// layout of LlamaGen's Python code (official_layout.h) behind one interface.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "vgen/codes/code_info.h"

namespace vgen::codes {

struct OpenOptions {
  /// A shard that is missing or damaged: fail = Error; skip = a warning, and read() of its images
  /// throws.
  std::string on_broken = "skip";
  /// The official layout only: where a second crop set is. auto: the sibling that LlamaGen's reader
  /// would take; off: none.
  std::string second_set = "auto";
};

/// An opened dataset. Read-only after open: every method may be called from several threads.
class CodeDataset {
 public:
  /// `path`: the --out folder of `vgen extract`, or a folder with `imagenet256_codes` and
  /// `imagenet256_labels` (any name and size), or such a `_codes` folder itself. Indices, labels
  /// and names are checked, codes when they are read. Throws Error(kNotFound) where there are no
  /// codes or the extraction is not finished, Error(kDataCorrupt) for a damaged index,
  /// Error(kInvalidArgument) for a dataset without images.
  static CodeDataset open(const std::string& path, const OpenOptions& options = {});

  CodeDataset(CodeDataset&&) noexcept;
  CodeDataset& operator=(CodeDataset&&) noexcept;
  ~CodeDataset();

  const CodeInfo& info() const;
  int64_t size() const;  ///< images, those of broken shards too

  /// Codes of a crop in [0, info().crop_sets[crop_set].count()). `code_T`: info().num_tokens().
  /// Throws Error(kDataCorrupt, kNotFound), with the file and the image.
  void read(int64_t index, size_t crop_set, int64_t crop, std::span<int64_t> code_T) const;
  /// -1 = none. Throws as read().
  int64_t label(int64_t index) const;
  std::string name(int64_t index) const;     ///< of the image; official layout: its number
  int64_t image_index(int64_t index) const;  ///< in the dataset of images

  /// What open() and read() share with a reader of files; detail.
  class Source;

 private:
  explicit CodeDataset(std::unique_ptr<Source> source);
  std::unique_ptr<Source> source_;
};

class CodeDataset::Source {
 public:
  virtual ~Source() = default;
  virtual const CodeInfo& info() const = 0;
  virtual int64_t size() const = 0;
  virtual void read(int64_t index, size_t crop_set, int64_t crop,
                    std::span<int64_t> code_T) const = 0;
  virtual int64_t label(int64_t index) const = 0;
  virtual std::string name(int64_t index) const = 0;
  virtual int64_t image_index(int64_t index) const = 0;
};

}  // namespace vgen::codes
