#pragma once
// Batches of codes for training and validation: data/loader.h's contract, with codes for pixels.
//
// What a batch holds depends on the dataset, seed, epoch, rank and position alone. The crop of a
// sample comes from Rng(seed, Purpose::kAugment, epoch, sample index): first one of the crop sets
// (two, as published: either with probability 0.5), then a crop of that set, both uniform.
// Validation takes the middle crop of the first set.
//
// Broken images (a damaged or missing shard, codes that are not as their checksum says, out of the
// vocabulary, a label out of range): `on_broken: fail` hands the error to the consumer. `skip`
// leaves the sample out, and the batch takes the following samples of the order. Each is counted,
// each cause is logged once. A whole epoch without a full batch is an error in both cases.
//
// The official layout does not tell its vocabulary, so its first 64 images are read before anything
// else: where more than three of them, or all, go beyond the vocabulary asked for, they are of
// another tokenizer, and the loader is not made.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "vgen/codes/code_dataset.h"
#include "vgen/core/config.h"
#include "vgen/data/loader.h"

namespace vgen::codes {

struct CodeDataConfig {                 // YAML section `data:` of what learns from codes
  std::string train = {};               ///< folder of codes, as CodeDataset::open
  std::string val = {};                 ///< the same for validation; "" = none
  std::vector<std::string> crops = {};  ///< sets to train on, by name; [] = all there are
  std::string second_set = "auto";      ///< official layout: auto, off; see OpenOptions
  std::string on_broken = "skip";       ///< skip, fail
  std::string shard_tail = "pad";       ///< samples that the ranks do not divide: pad, drop
  int64_t prefetch_batches = 4;         ///< batches that are ready ahead of the consumer
};
template <class Visitor>
void visit_fields(Visitor& v, CodeDataConfig& c) {
  v("train", c.train);
  v("val", c.val);
  v("crops", c.crops);
  v("second_set", c.second_set, one_of({"auto", "off"}));
  v("on_broken", c.on_broken, one_of({"skip", "fail"}));
  v("shard_tail", c.shard_tail, one_of({"pad", "drop"}));
  v("prefetch_batches", c.prefetch_batches, between(1, 1024));
}

struct CodeBatch {
  at::Tensor code_BT;          ///< int64, contiguous
  at::Tensor label_B;          ///< int64, -1 = none
  std::vector<int64_t> index;  ///< of each sample in the dataset
};

/// One consumer thread. Destruction stops the reader at once.
class CodeLoader {
 public:
  /// Training: shuffled, random crops, endless. Opens config.train. Throws Error(kInvalidArgument)
  /// where the codes are not what `required` asks for: check_fits(), and above.
  static CodeLoader for_training(const CodeDataConfig& config, const CodeRequirements& required,
                                 const data::LoaderOptions& options);
  /// Validation: in order, nothing random, every image exactly once per pass (ranks may differ by
  /// one image; the last batch may be short). Opens config.val.
  static CodeLoader for_validation(const CodeDataConfig& config, const CodeRequirements& required,
                                   const data::LoaderOptions& options);

  CodeLoader(CodeLoader&&) noexcept;
  CodeLoader& operator=(CodeLoader&&) noexcept;
  ~CodeLoader();

  /// The next full batch; goes on with the next epoch where less than a batch is left. Training.
  CodeBatch next();
  /// The next batch of the pass, none at its end; the call after that begins a new pass.
  /// Validation.
  std::optional<CodeBatch> next_in_pass();

  /// Where the next batch begins. A CodeLoader made alike and put there by seek() continues
  /// equally.
  data::LoaderPosition position() const;
  /// Throws Error(kInvalidArgument) for a position outside the epoch.
  void seek(const data::LoaderPosition& position);

  const CodeDataset& dataset() const;
  int64_t batches_per_epoch() const;  ///< of this rank, broken images not regarded
  data::LoaderStats stats() const;

 private:
  struct Impl;
  explicit CodeLoader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace vgen::codes
