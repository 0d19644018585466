#include "vgen/codes/code_loader.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <unordered_set>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/core/random.h"
#include "vgen/core/threads.h"
#include "vgen/data/sampler.h"

namespace vgen::codes {
namespace {

using data::LoaderPosition;

/// What the reader's thread reads, and how.
struct Plan {
  CodeDataConfig config;
  CodeRequirements required;
  data::LoaderOptions options;
  bool is_training = true;
  std::string path;
  std::vector<size_t> crop_sets;  // to choose from
};

struct ReadyBatch {
  CodeBatch batch;
  LoaderPosition next;  // the sample after its last one
  int64_t broken = 0;   // skipped since the batch before
};

/// A thread that makes batches ahead. Broken samples are decided here, in the order of the epoch.
class Reader {
 public:
  Reader(const Plan& plan, const CodeDataset& dataset, const data::Sampler& sampler,
         std::unordered_set<std::string>& reported, LoaderPosition start)
      : plan_(plan), dataset_(dataset), sampler_(sampler), reported_(reported), position_(start) {
    threads_.start("reading", 1, [this] { run(); });
  }
  ~Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  /// None at the end of a pass. Rethrows what went wrong, again at every later call.
  std::optional<ReadyBatch> next() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return !batches_.empty() || failure_ || has_ended_; });
    if (!batches_.empty()) {
      ReadyBatch batch = std::move(batches_.front());
      batches_.pop_front();
      taken_.notify_one();
      return batch;
    }
    if (failure_) std::rethrow_exception(failure_);
    return {};
  }

 private:
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    taken_.notify_all();
  }

  void run() {
    try {
      do {
        if (!read_epoch()) return;
        position_ = {.epoch = position_.epoch + 1, .sample = 0};
      } while (plan_.is_training);
      const std::lock_guard lock(mutex_);
      has_ended_ = true;
    } catch (...) {
      const std::lock_guard lock(mutex_);
      failure_ = std::current_exception();
    }
    ready_.notify_all();
  }

  /// False: stopped in the middle.
  bool read_epoch() {
    const std::vector<int64_t> order = sampler_.order(position_.epoch);
    const bool is_whole = position_.sample == 0;
    int64_t full_batches = 0, broken_in_epoch = 0;
    begin_batch();
    for (; position_.sample < static_cast<int64_t>(order.size()); ++position_.sample) {
      if (should_stop()) return false;
      const int64_t index = order[static_cast<size_t>(position_.sample)];
      try {
        add(index);
      } catch (const Error& error) {
        if (plan_.config.on_broken == "fail") throw;
        if (reported_.insert(error.what()).second) log_warning("skipped: ", error.what());
        ++open_.broken;
        ++broken_in_epoch;
        continue;
      }
      if (static_cast<int64_t>(open_.batch.index.size()) < plan_.options.batch_size) continue;
      if (!push()) return false;
      ++full_batches;
    }
    if (!plan_.is_training && !open_.batch.index.empty()) {
      ++full_batches;
      if (!push()) return false;
    }
    require(!is_whole || full_batches > 0, ErrorCode::kDataCorrupt, plan_.path, ": epoch ",
            position_.epoch, " gave no full batch of ", plan_.options.batch_size, ": ",
            broken_in_epoch, " of ", order.size(), " images are broken (see the log)");
    return true;
  }

  void begin_batch() {
    const auto options =
        at::TensorOptions().dtype(at::kLong).pinned_memory(plan_.options.pin_memory);
    const int64_t size = plan_.options.batch_size;
    const int64_t broken = open_.broken;  // of a rest that was dropped
    open_ = {.batch = {.code_BT = at::empty({size, dataset_.info().num_tokens()}, options),
                       .label_B = at::empty({size}, options),
                       .index = {}},
             .next = {},
             .broken = broken};
  }

  void add(int64_t index) {
    size_t crop_set = plan_.crop_sets[0];
    int64_t crop = dataset_.info().crop_sets[crop_set].middle();
    if (plan_.is_training) {
      Rng rng(plan_.options.seed, Purpose::kAugment, static_cast<uint64_t>(position_.epoch),
              static_cast<uint64_t>(index));
      crop_set = plan_.crop_sets[rng.below(plan_.crop_sets.size())];
      const int64_t count = dataset_.info().crop_sets[crop_set].count();
      crop = static_cast<int64_t>(rng.below(static_cast<uint64_t>(count)));
    }
    const auto row = static_cast<int64_t>(open_.batch.index.size());
    const int64_t tokens = dataset_.info().num_tokens();
    const std::span<int64_t> code_T(open_.batch.code_BT.data_ptr<int64_t>() + row * tokens,
                                    static_cast<size_t>(tokens));
    dataset_.read(index, crop_set, crop, code_T);
    const int64_t label = dataset_.label(index);
    check(index, code_T, label);
    open_.batch.label_B.data_ptr<int64_t>()[row] = label;
    open_.batch.index.push_back(index);
  }

  /// What a dataset that knows neither vocabulary nor classes may still hold.
  void check(int64_t index, std::span<const int64_t> code_T, int64_t label) const {
    const int64_t highest = *std::ranges::max_element(code_T);
    const int64_t codebook_size = plan_.required.codebook_size;
    require(codebook_size == 0 || highest < codebook_size, ErrorCode::kDataCorrupt, plan_.path,
            ": image ", printable(dataset_.name(index)), " has the code ", highest,
            ", but the vocabulary ends at ", codebook_size - 1);
    const int64_t num_classes = plan_.required.num_classes;
    require(num_classes == 0 || (label >= 0 && label < num_classes), ErrorCode::kDataCorrupt,
            plan_.path, ": image ", printable(dataset_.name(index)), " has the label ", label,
            ", expected 0 to ", num_classes - 1);
  }

  bool should_stop() {
    const std::lock_guard lock(mutex_);
    return is_stopping_;
  }

  bool push() {
    open_.next = {.epoch = position_.epoch, .sample = position_.sample + 1};
    const auto size = static_cast<int64_t>(open_.batch.index.size());
    if (size < plan_.options.batch_size) {  // the end of a pass
      open_.next.sample = position_.sample;
      open_.batch.code_BT = open_.batch.code_BT.narrow(0, 0, size);
      open_.batch.label_B = open_.batch.label_B.narrow(0, 0, size);
    }
    {
      std::unique_lock lock(mutex_);
      taken_.wait(lock, [this] {
        return is_stopping_ ||
               static_cast<int64_t>(batches_.size()) < plan_.config.prefetch_batches;
      });
      if (is_stopping_) return false;
      batches_.push_back(std::move(open_));
    }
    ready_.notify_one();
    open_.broken = 0;
    begin_batch();
    return true;
  }

  const Plan& plan_;
  const CodeDataset& dataset_;
  const data::Sampler& sampler_;
  std::unordered_set<std::string>& reported_;
  LoaderPosition position_;  // of the sample in work
  ReadyBatch open_;

  std::mutex mutex_;
  std::condition_variable ready_, taken_;
  std::deque<ReadyBatch> batches_;
  bool is_stopping_ = false;
  bool has_ended_ = false;
  std::exception_ptr failure_;
  Threads threads_{[this] { stop(); }};  // last: it uses all of the above
};

/// The sets that `crops` names; all of them when it is empty.
std::vector<size_t> choose_sets(const CodeInfo& info, const std::vector<std::string>& crops) {
  std::vector<size_t> chosen;
  std::vector<std::string> names;
  for (const CropSet& set : info.crop_sets) names.push_back(set.name());
  for (const std::string& crop : crops) {
    const auto found = std::ranges::find(info.crop_sets, parse_crop_set(crop));
    require(found != info.crop_sets.end(), ErrorCode::kInvalidArgument, "has no crops '", crop,
            "' (data.crops), only ", join(names, ", "));
    chosen.push_back(static_cast<size_t>(found - info.crop_sets.begin()));
  }
  if (chosen.empty()) {
    for (size_t i = 0; i < info.crop_sets.size(); ++i) chosen.push_back(i);
  }
  return chosen;
}

constexpr int64_t kProbedImages = 64;
constexpr int64_t kFewMisfits = 3;

/// Refuses codes of another tokenizer where the dataset does not know its vocabulary: they would be
/// left out one by one. What cannot be read is left to the reader.
void check_vocabulary(const CodeDataset& dataset, int64_t codebook_size, size_t crop_set) {
  const int64_t crop = dataset.info().crop_sets[crop_set].middle();
  const int64_t probed = std::min(dataset.size(), kProbedImages);
  std::vector<int64_t> code_T(static_cast<size_t>(dataset.info().num_tokens()));
  int64_t misfits = 0, first = 0, first_code = 0;
  for (int64_t index = 0; index < probed; ++index) {
    try {
      dataset.read(index, crop_set, crop, code_T);
    } catch (const Error&) {
      continue;
    }
    const int64_t highest = *std::ranges::max_element(code_T);
    if (highest < codebook_size) continue;
    if (misfits == 0) {
      first = index;
      first_code = highest;
    }
    ++misfits;
  }
  require(misfits <= kFewMisfits && misfits < probed, ErrorCode::kInvalidArgument,
          dataset.name(first), ".npy has the code ", first_code, ", but the vocabulary ends at ",
          codebook_size - 1, "; ", misfits, " of the first ", probed,
          " images go beyond it, so they are of another tokenizer: extract them again with the "
          "right one, or change the config");
}

data::SamplerConfig sampler_config(const Plan& plan, int64_t size) {
  const auto tail = !plan.is_training                  ? data::ShardTail::kKeep
                    : plan.config.shard_tail == "drop" ? data::ShardTail::kDrop
                                                       : data::ShardTail::kPad;
  return {.size = size,
          .shuffle = plan.is_training,
          .seed = plan.options.seed,
          .rank = plan.options.rank,
          .world_size = plan.options.world_size,
          .tail = tail};
}

}  // namespace

struct CodeLoader::Impl {
  explicit Impl(Plan what)
      : plan(std::move(what)),
        dataset(CodeDataset::open(
            plan.path, {.on_broken = plan.config.on_broken, .second_set = plan.config.second_set})),
        sampler(sampler_config(plan, dataset.size())) {
    try {
      check_fits(dataset.info(), plan.required);
      plan.crop_sets = choose_sets(
          dataset.info(), plan.is_training ? plan.config.crops : std::vector<std::string>{});
      const int64_t vocabulary = plan.required.codebook_size;
      if (vocabulary != 0 && dataset.info().codebook_size == 0) {
        for (const size_t set : plan.crop_sets) check_vocabulary(dataset, vocabulary, set);
      }
    } catch (Error& error) {
      error.add_context(plan.path);
      throw;
    }
    require(!plan.is_training || plan.options.batch_size <= sampler.samples_per_epoch(),
            ErrorCode::kInvalidArgument, plan.path, ": a batch of ", plan.options.batch_size,
            " needs more than the ", sampler.samples_per_epoch(), " images of rank ",
            plan.options.rank, "; use a smaller batch");
  }

  std::optional<CodeBatch> next() {
    if (!reader) reader = std::make_unique<Reader>(plan, dataset, sampler, reported, position);
    const auto begin = std::chrono::steady_clock::now();
    auto ready = reader->next();
    stats.wait_seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (!ready) {
      reader.reset();
      position = {};
      return {};
    }
    position = ready->next;
    stats.images += static_cast<int64_t>(ready->batch.index.size());
    stats.broken += ready->broken;
    return std::move(ready->batch);
  }

  Plan plan;
  CodeDataset dataset;
  data::Sampler sampler;
  LoaderPosition position;
  data::LoaderStats stats;
  std::unordered_set<std::string> reported;
  std::unique_ptr<Reader> reader;  // last: its thread uses all of the above
};

namespace {

Plan make_plan(const CodeDataConfig& config, const CodeRequirements& required,
               const data::LoaderOptions& options, bool is_training) {
  require(config.prefetch_batches >= 1, ErrorCode::kInvalidArgument, "data.prefetch_batches is ",
          config.prefetch_batches, ": expected at least 1");
  require(options.batch_size >= 1, ErrorCode::kInvalidArgument, "batch size ", options.batch_size,
          ": expected at least 1");
  return {.config = config,
          .required = required,
          .options = options,
          .is_training = is_training,
          .path = is_training ? config.train : config.val,
          .crop_sets = {}};
}

}  // namespace

CodeLoader::CodeLoader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CodeLoader::CodeLoader(CodeLoader&&) noexcept = default;
CodeLoader& CodeLoader::operator=(CodeLoader&&) noexcept = default;
CodeLoader::~CodeLoader() = default;

CodeLoader CodeLoader::for_training(const CodeDataConfig& config, const CodeRequirements& required,
                                    const data::LoaderOptions& options) {
  return CodeLoader(std::make_unique<Impl>(make_plan(config, required, options, true)));
}

CodeLoader CodeLoader::for_validation(const CodeDataConfig& config,
                                      const CodeRequirements& required,
                                      const data::LoaderOptions& options) {
  return CodeLoader(std::make_unique<Impl>(make_plan(config, required, options, false)));
}

CodeBatch CodeLoader::next() {
  require(impl_->plan.is_training, ErrorCode::kInternal, "next() is for training loaders");
  return *impl_->next();
}

std::optional<CodeBatch> CodeLoader::next_in_pass() {
  require(!impl_->plan.is_training, ErrorCode::kInternal,
          "next_in_pass() is for validation loaders");
  return impl_->next();
}

LoaderPosition CodeLoader::position() const { return impl_->position; }

void CodeLoader::seek(const LoaderPosition& position) {
  const int64_t samples = impl_->sampler.samples_per_epoch();
  require(position.epoch >= 0 && position.sample >= 0 && position.sample <= samples,
          ErrorCode::kInvalidArgument, impl_->plan.path, ": cannot continue at sample ",
          position.sample, " of epoch ", position.epoch, ": an epoch has ", samples,
          " samples of this rank; did the dataset or the number of ranks change?");
  impl_->reader.reset();
  impl_->position = position;
}

const CodeDataset& CodeLoader::dataset() const { return impl_->dataset; }
int64_t CodeLoader::batches_per_epoch() const {
  const int64_t samples = impl_->sampler.samples_per_epoch(), size = impl_->plan.options.batch_size;
  return impl_->plan.is_training ? samples / size : (samples + size - 1) / size;
}
data::LoaderStats CodeLoader::stats() const { return impl_->stats; }

}  // namespace vgen::codes
