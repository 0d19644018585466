#pragma once
// Batches of images: worker threads decode and transform ahead, the consumer gets them in order.
//
// What a batch holds depends on the dataset, seed, epoch, rank and position alone, never on the
// number of workers or on timing: the crop of a sample comes from
// Rng(seed, Purpose::kAugment, epoch, sample index).
//
// Broken images (unreadable, damaged, smaller than `min_side`): `on_broken: fail` hands the error
// to the consumer. `skip` leaves the sample out, and the batch takes the following samples of the
// order: nothing is shown twice, batches stay full, an epoch is shorter by what was skipped. Each
// one is counted, and logged with its path the first time. A training epoch of a rank without a
// full batch and a validation pass without a readable image are errors in both cases.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "vgen/core/config.h"
#include "vgen/data/dataset.h"

namespace vgen::data {

struct DataConfig {  // YAML section `data:`
  DatasetConfig train;
  DatasetConfig val;
  int64_t image_size = 256;                   ///< side of the square, pixels
  std::string transform = "random_crop";      ///< of training: random_crop, center_crop, var
  std::string val_transform = "center_crop";  ///< of validation: center_crop, var
  double min_crop_frac = 0.8;                 ///< random_crop: least share of the shorter side
  double max_crop_frac = 1.0;                 ///< random_crop: largest share of the shorter side
  double flip_prob = 0.5;                     ///< probability of a left-right mirror in training
  int64_t min_side = 1;              ///< images with a shorter side below it count as broken
  int64_t max_pixels = 178'956'970;  ///< images with more pixels count as broken
  std::string on_broken = "skip";    ///< skip, fail
  std::string shard_tail = "pad";    ///< training samples that the ranks do not divide: pad, drop
  bool decode_scale = false;         ///< JPEGs may be shrunk while decoding: fast, not bit-exact
  int64_t workers = 2;               ///< decoding threads
  int64_t prefetch_batches = 2;      ///< batches that are ready or in work ahead of the consumer
  int64_t cache_mb = 0;              ///< decoded images kept in memory, MiB
};
template <class Visitor>
void visit_fields(Visitor& v, DataConfig& c) {
  v("train", c.train);
  v("val", c.val);
  v("image_size", c.image_size, between(1, 16384));
  v("transform", c.transform, one_of({"random_crop", "center_crop", "var"}));
  v("val_transform", c.val_transform, one_of({"center_crop", "var"}));
  v("min_crop_frac", c.min_crop_frac, Range{.low = 0, .high = 1, .is_low_open = true});
  v("max_crop_frac", c.max_crop_frac, Range{.low = 0, .high = 1, .is_low_open = true});
  v("flip_prob", c.flip_prob, between(0, 1));
  v("min_side", c.min_side, at_least(1));
  v("max_pixels", c.max_pixels, at_least(1));
  v("on_broken", c.on_broken, one_of({"skip", "fail"}));
  v("shard_tail", c.shard_tail, one_of({"pad", "drop"}));
  v("decode_scale", c.decode_scale);
  v("workers", c.workers, between(1, 1024));
  v("prefetch_batches", c.prefetch_batches, between(1, 1024));
  v("cache_mb", c.cache_mb, at_least(0));
}

/// What the run decides, not the data section.
struct LoaderOptions {
  int64_t batch_size = 1;  ///< images per next() of this rank
  uint64_t seed = 0;
  int64_t rank = 0;
  int64_t world_size = 1;
  bool pin_memory = false;  ///< page-locked batches, for copies to a CUDA device
};

struct ImageBatch {
  at::Tensor image_B3HW;       ///< float32 in [-1, 1], contiguous
  at::Tensor label_B;          ///< int64, -1 = none
  std::vector<int64_t> index;  ///< of each sample in the dataset
};

/// The next sample to be taken: `sample` counts this rank's order of the epoch, broken ones too.
struct LoaderPosition {
  int64_t epoch = 0;
  int64_t sample = 0;
  bool operator==(const LoaderPosition&) const = default;
};

struct LoaderStats {
  int64_t images = 0;       ///< handed out
  int64_t broken = 0;       ///< skipped, counted every time
  double wait_seconds = 0;  ///< that next() had to wait for the workers
};

/// One consumer thread. Destruction stops the workers at once, also in the middle of a batch.
class Loader {
 public:
  /// Training: shuffled, augmented, endless. Opens config.train.
  static Loader for_training(const DataConfig& config, const LoaderOptions& options);
  /// Validation: in order, nothing random, every image exactly once per pass (ranks may differ by
  /// one image; the last batch may be short). Opens config.val.
  static Loader for_validation(const DataConfig& config, const LoaderOptions& options);
  /// The same over a dataset that is open already; config.val.path only names it in messages.
  static Loader for_validation(const DataConfig& config, const LoaderOptions& options,
                               Dataset dataset);

  Loader(Loader&&) noexcept;
  Loader& operator=(Loader&&) noexcept;
  ~Loader();

  /// The next full batch; goes on with the next epoch where less than a batch is left. Training.
  ImageBatch next();
  /// The next batch of the pass, none at its end; the call after that begins a new pass.
  /// Validation.
  std::optional<ImageBatch> next_in_pass();

  /// Where the next batch begins. A Loader made alike and put there by seek() continues equally.
  LoaderPosition position() const;
  /// Throws Error(kInvalidArgument) for a position outside the epoch.
  void seek(const LoaderPosition& position);

  const Dataset& dataset() const;
  int64_t num_classes() const;        ///< 0 when unlabelled
  int64_t batches_per_epoch() const;  ///< of this rank, broken images not regarded
  LoaderStats stats() const;

 private:
  struct Impl;
  explicit Loader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace vgen::data
