#pragma once
// Where a model of codes takes its batches from: files of codes, or images through a frozen
// tokenizer, both with the order, epochs and positions of data/loader.h. B batch, L codes of an
// image, S side of an image.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "vgen/codes/code_loader.h"
#include "vgen/data/loader.h"

namespace vgen::train {

/// The loaders' methods (data/loader.h), with codes in the batches. One consumer thread.
class CodeSource {
 public:
  virtual ~CodeSource() = default;
  /// Training: the next full batch. code_BT is on the device of the codes' maker, labels are not.
  virtual codes::CodeBatch next() = 0;
  /// Validation: the next batch of the pass, none at its end.
  virtual std::optional<codes::CodeBatch> next_in_pass() = 0;
  virtual data::LoaderPosition position() const = 0;
  virtual void seek(const data::LoaderPosition& position) = 0;
  virtual data::LoaderStats stats() const = 0;
  virtual int64_t batches_per_epoch() const = 0;
};

/// Codes (B, L) of images (B, 3, S, S), float32 in [-1, 1] on the CPU.
using EncodeImages = std::function<at::Tensor(const at::Tensor& image_B3SS)>;

std::unique_ptr<CodeSource> codes_from_files(codes::CodeLoader loader);
/// Images are encoded when their batch is asked for.
std::unique_ptr<CodeSource> codes_of_images(data::Loader loader, EncodeImages encode);

}  // namespace vgen::train
