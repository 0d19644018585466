#include "vgen/data/loader.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>
#include <unordered_set>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/core/threads.h"
#include "vgen/data/detail/pipeline.h"
#include "vgen/data/image.h"
#include "vgen/data/resample.h"
#include "vgen/data/transforms.h"

namespace vgen::data {
namespace {

/// Decoded images of a small dataset. A budget, not an eviction rule: what came first stays.
class ImageCache {
 public:
  ImageCache(int64_t images, int64_t budget_bytes)
      : images_(budget_bytes > 0 ? static_cast<size_t>(images) : 0), left_(budget_bytes) {}

  std::shared_ptr<const Image> find(int64_t index) {
    if (images_.empty()) return nullptr;
    const std::lock_guard lock(mutex_);
    return images_[static_cast<size_t>(index)];
  }

  void keep(int64_t index, std::shared_ptr<const Image> image) {
    if (images_.empty()) return;
    const auto size = static_cast<int64_t>(image->rgb.size());
    const std::lock_guard lock(mutex_);
    if (images_[static_cast<size_t>(index)] || size > left_) return;
    left_ -= size;
    images_[static_cast<size_t>(index)] = std::move(image);
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<const Image>> images_;
  int64_t left_;
};

void check_configs(const DataConfig& config, const LoaderOptions& options) {
  check_worker_count("data.workers", config.workers);
  require(config.prefetch_batches >= 1, ErrorCode::kInvalidArgument, "data.prefetch_batches is ",
          config.prefetch_batches, ": expected at least 1");
  require(config.image_size >= 1, ErrorCode::kInvalidArgument, "data.image_size is ",
          config.image_size, ": expected at least 1");
  require(config.min_crop_frac > 0 && config.min_crop_frac <= config.max_crop_frac &&
              config.max_crop_frac <= 1,
          ErrorCode::kInvalidArgument, "data.min_crop_frac ", config.min_crop_frac,
          " and data.max_crop_frac ", config.max_crop_frac,
          ": expected 0 < min_crop_frac <= max_crop_frac <= 1");
  require(options.batch_size >= 1, ErrorCode::kInvalidArgument, "batch size ", options.batch_size,
          ": expected at least 1");
}

}  // namespace

struct Loader::Impl {
  Impl(const DataConfig& data_config, const LoaderOptions& loader_options, bool training,
       Dataset opened)
      : config(data_config),
        options(loader_options),
        is_training(training),
        source(training ? config.train : config.val),
        dataset(std::move(opened)),
        sampler(sampler_config()),
        cache(dataset.size(), config.cache_mb << 20) {
    require(!is_training || options.batch_size <= sampler.samples_per_epoch(),
            ErrorCode::kInvalidArgument, source.path, ": a batch of ", options.batch_size,
            " needs more than the ", sampler.samples_per_epoch(), " images of rank ", options.rank,
            "; use a smaller batch, or let each image count several times with repeat");
  }

  SamplerConfig sampler_config() const {
    const auto tail = !is_training                  ? ShardTail::kKeep
                      : config.shard_tail == "drop" ? ShardTail::kDrop
                                                    : ShardTail::kPad;
    return {.size = dataset.size() * source.repeat,
            .shuffle = is_training,
            .seed = options.seed,
            .rank = options.rank,
            .world_size = options.world_size,
            .tail = tail};
  }

  /// The longest shorter side that a transform resizes to.
  int64_t largest_target() const {
    const auto size = static_cast<double>(config.image_size);
    const std::string& transform = is_training ? config.transform : config.val_transform;
    if (transform == "random_crop")
      return static_cast<int64_t>(std::ceil(size / config.min_crop_frac));
    return transform == "var" ? static_cast<int64_t>(std::ceil(size * 1.125)) : config.image_size;
  }

  std::shared_ptr<const Image> decoded(int64_t index) {
    if (auto image = cache.find(index)) return image;
    const std::vector<std::byte> file = dataset.read(index);
    try {
      const ImageInfo info = probe_image(file);
      check_min_side(info.width, info.height, config.min_side);
      auto image = std::make_shared<const Image>(
          decode_image(file, config.max_pixels, config.decode_scale ? largest_target() : 0));
      cache.keep(index, image);
      return image;
    } catch (Error& error) {
      error.add_context(dataset.where(index));
      throw;
    }
  }

  /// Called by several workers at once.
  Image make(const detail::StreamItem& item) {
    const auto image = decoded(item.index % dataset.size());
    if (!is_training) {
      return config.val_transform == "var" ? var_center_crop(*image, config.image_size)
                                           : center_crop(*image, config.image_size);
    }
    Rng rng(options.seed, Purpose::kAugment, static_cast<uint64_t>(item.position.epoch),
            static_cast<uint64_t>(item.index));
    if (config.transform == "var") {  // mirrors first
      const bool is_flipped = rng.uniform() < config.flip_prob;
      return var_random_crop(is_flipped ? flip_horizontal(*image) : *image, config.image_size, rng);
    }
    const RandomCrop range{.min_frac = config.min_crop_frac, .max_frac = config.max_crop_frac};
    Image square = config.transform == "center_crop"
                       ? center_crop(*image, config.image_size)
                       : random_crop(*image, config.image_size, range, rng);
    return rng.uniform() < config.flip_prob ? flip_horizontal(square) : square;
  }

  std::pair<int64_t, int64_t> describe(const detail::StreamItem& item) const {
    const int64_t index = item.index % dataset.size();
    return {dataset.label(index), index};
  }

  /// Called by the assembler alone.
  void report_broken(const detail::StreamItem& item, const Error& error) {
    if (reported.insert(item.index % dataset.size()).second) {
      log_warning("skipped: ", error.what());
    }
  }

  void start() {
    if (pipeline) return;
    const detail::PipelineConfig pipeline_config{.batch_size = options.batch_size,
                                                 .image_size = config.image_size,
                                                 .workers = config.workers,
                                                 .prefetch_batches = config.prefetch_batches,
                                                 .pin_memory = options.pin_memory,
                                                 .is_endless = is_training,
                                                 .skips_broken = config.on_broken != "fail",
                                                 .samples_per_epoch = sampler.samples_per_epoch(),
                                                 .where = source.path};
    detail::PipelineCalls calls{
        .make = [this](const auto& item) { return make(item); },
        .describe = [this](const auto& item) { return describe(item); },
        .report_broken = [this](const auto& item, const auto& e) { report_broken(item, e); }};
    pipeline = std::make_unique<detail::Pipeline>(
        pipeline_config, detail::SampleStream(sampler, position, is_training), std::move(calls));
  }

  std::optional<ImageBatch> next() {
    start();
    const auto begin = std::chrono::steady_clock::now();
    auto ready = pipeline->next();
    stats.wait_seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (!ready) {
      pipeline.reset();
      position = {};
      return {};
    }
    position = ready->next;
    stats.images += static_cast<int64_t>(ready->batch.index.size());
    stats.broken += ready->broken;
    return std::move(ready->batch);
  }

  DataConfig config;
  LoaderOptions options;
  bool is_training;
  DatasetConfig source;
  Dataset dataset;
  Sampler sampler;
  ImageCache cache;
  LoaderPosition position;
  LoaderStats stats;
  std::unordered_set<int64_t> reported;
  std::unique_ptr<detail::Pipeline> pipeline;  // last: its threads use all of the above
};

Loader::Loader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Loader::Loader(Loader&&) noexcept = default;
Loader& Loader::operator=(Loader&&) noexcept = default;
Loader::~Loader() = default;

Loader Loader::for_training(const DataConfig& config, const LoaderOptions& options) {
  check_configs(config, options);
  return Loader(std::make_unique<Impl>(config, options, true, Dataset::open(config.train)));
}

Loader Loader::for_validation(const DataConfig& config, const LoaderOptions& options) {
  check_configs(config, options);
  return Loader(std::make_unique<Impl>(config, options, false, Dataset::open(config.val)));
}

Loader Loader::for_validation(const DataConfig& config, const LoaderOptions& options,
                              Dataset dataset) {
  check_configs(config, options);
  return Loader(std::make_unique<Impl>(config, options, false, std::move(dataset)));
}

ImageBatch Loader::next() {
  require(impl_->is_training, ErrorCode::kInternal, "next() is for training loaders");
  return *impl_->next();
}

std::optional<ImageBatch> Loader::next_in_pass() {
  require(!impl_->is_training, ErrorCode::kInternal, "next_in_pass() is for validation loaders");
  return impl_->next();
}

LoaderPosition Loader::position() const { return impl_->position; }

void Loader::seek(const LoaderPosition& position) {
  require(position.epoch >= 0 && position.sample >= 0 &&
              position.sample <= impl_->sampler.samples_per_epoch(),
          ErrorCode::kInvalidArgument, impl_->source.path, ": cannot continue at sample ",
          position.sample, " of epoch ", position.epoch, ": an epoch has ",
          impl_->sampler.samples_per_epoch(),
          " samples of this rank; did the dataset or the number of ranks change?");
  impl_->pipeline.reset();
  impl_->position = position;
}

const Dataset& Loader::dataset() const { return impl_->dataset; }
int64_t Loader::num_classes() const {
  return static_cast<int64_t>(impl_->dataset.classes().size());
}
int64_t Loader::batches_per_epoch() const {
  const int64_t samples = impl_->sampler.samples_per_epoch(), size = impl_->options.batch_size;
  return impl_->is_training ? samples / size : (samples + size - 1) / size;
}
LoaderStats Loader::stats() const { return impl_->stats; }

}  // namespace vgen::data
