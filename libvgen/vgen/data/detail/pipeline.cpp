#include "vgen/data/detail/pipeline.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "vgen/data/transforms.h"

namespace vgen::data::detail {

SampleStream::SampleStream(const Sampler& sampler, LoaderPosition start, bool is_endless)
    : sampler_(sampler), position_(start), is_endless_(is_endless) {}

std::optional<StreamItem> SampleStream::next() {
  if (position_.sample >= sampler_.samples_per_epoch()) {
    if (!is_endless_) return {};
    position_ = {.epoch = position_.epoch + 1, .sample = 0};
    order_.clear();
  }
  if (order_.empty()) order_ = sampler_.order(position_.epoch);
  const StreamItem item{.position = position_,
                        .index = order_[static_cast<size_t>(position_.sample)]};
  ++position_.sample;
  return item;
}

Pipeline::Pipeline(const PipelineConfig& config, SampleStream stream, PipelineCalls calls)
    : config_(config), calls_(std::move(calls)), stream_(std::move(stream)) {
  slots_.resize(static_cast<size_t>(std::max(config.batch_size, 2 * config.workers)));
  threads_.start("decoding", config.workers, [this] { work(); });
  threads_.start("batching", 1, [this] { run_assembler(); });
}

void Pipeline::stop() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  for (auto* condition : {&slot_free_, &slot_done_, &batch_ready_, &batch_taken_}) {
    condition->notify_all();
  }
}

void Pipeline::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    slot_free_.wait(lock, [this] {
      return is_stopping_ || stream_ended_ ||
             taken_ - assembled_ < static_cast<int64_t>(slots_.size());
    });
    if (is_stopping_ || stream_ended_) return;
    const auto item = stream_.next();
    if (!item) {
      stream_ended_ = true;
      slot_free_.notify_all();
      slot_done_.notify_all();
      return;
    }
    Slot& slot = slots_[static_cast<size_t>(taken_++) % slots_.size()];
    lock.unlock();

    Slot made;  // the slot itself belongs to the lock
    made.item = *item;
    made.is_done = true;
    try {
      made.image = calls_.make(*item);
    } catch (const Error& error) {
      made.broken = error;
    } catch (...) {
      made.failure = std::current_exception();
    }

    lock.lock();
    slot = std::move(made);
    slot_done_.notify_one();
  }
}

std::optional<Pipeline::Slot> Pipeline::take_slot() {
  std::unique_lock lock(mutex_);
  Slot& slot = slots_[static_cast<size_t>(assembled_) % slots_.size()];
  slot_done_.wait(lock, [&] {
    return is_stopping_ || slot.is_done || (stream_ended_ && assembled_ == taken_);
  });
  if (is_stopping_ || !slot.is_done) return {};
  Slot result = std::move(slot);
  slot = {};
  ++assembled_;
  slot_free_.notify_one();
  return result;
}

void Pipeline::run_assembler() {
  try {
    assemble();
  } catch (...) {
    fail(std::current_exception());
  }
}

void Pipeline::assemble() {
  Open open;
  while (auto slot = take_slot()) {
    if (slot->failure) std::rethrow_exception(slot->failure);
    if (slot->item.position.epoch != open.epoch) begin_epoch(open, slot->item);
    if (slot->broken) {
      if (!config_.skips_broken) throw *slot->broken;
      calls_.report_broken(slot->item, *slot->broken);
      if (!open.first_broken) open.first_broken = *slot->broken;
      ++open.broken;
      continue;
    }
    add(open, std::move(*slot));
    if (open.size == config_.batch_size) push(open);
  }
  if (config_.is_endless) return;  // stopped
  if (open.size > 0) push(open);
  check_epoch(open);
  const std::lock_guard lock(mutex_);
  has_ended_ = true;
  batch_ready_.notify_all();
}

/// What is left of the epoch before is less than a batch: dropped.
void Pipeline::begin_epoch(Open& open, const StreamItem& item) {
  check_epoch(open);
  open.size = 0;
  open.epoch = item.position.epoch;
  open.began_epoch = item.position.sample == 0;
  open.batches = 0;
  open.first_broken.reset();
}

/// An endless stream must not search without end. A single pass is content with one image: without
/// a batch all of its images were broken.
void Pipeline::check_epoch(const Open& open) const {
  if (!open.began_epoch || open.batches > 0) return;
  if (config_.is_endless) {
    throw_error(ErrorCode::kDataCorrupt, config_.where, ": epoch ", open.epoch,
                " gave no full batch of ", config_.batch_size, ": ", open.broken, " of ",
                config_.samples_per_epoch,
                " images are broken (see the log); run `vgen data verify` on it");
  }
  if (config_.samples_per_epoch == 1) throw *open.first_broken;
  throw_error(ErrorCode::kDataCorrupt, config_.where, ": none of ", config_.samples_per_epoch,
              " images can be read; the first: ", open.first_broken->what());
}

void Pipeline::add(Open& open, Slot slot) {
  const int64_t side = config_.image_size;
  if (open.size == 0) {
    const auto pixels = at::TensorOptions().dtype(at::kFloat).pinned_memory(config_.pin_memory);
    const auto labels = at::TensorOptions().dtype(at::kLong).pinned_memory(config_.pin_memory);
    open.batch.image_B3HW = at::empty({config_.batch_size, 3, side, side}, pixels);
    open.batch.label_B = at::empty({config_.batch_size}, labels);
    open.batch.index.clear();
  }
  const int64_t count = 3 * side * side;
  float* image = open.batch.image_B3HW.data_ptr<float>() + open.size * count;
  to_float(slot.image, {image, static_cast<size_t>(count)});
  const auto [label, index] = calls_.describe(slot.item);
  open.batch.label_B.data_ptr<int64_t>()[open.size] = label;
  open.batch.index.push_back(index);
  open.next = {.epoch = slot.item.position.epoch, .sample = slot.item.position.sample + 1};
  ++open.size;
}

void Pipeline::push(Open& open) {
  if (open.size < config_.batch_size) {
    open.batch.image_B3HW = open.batch.image_B3HW.narrow(0, 0, open.size);
    open.batch.label_B = open.batch.label_B.narrow(0, 0, open.size);
  }
  ReadyBatch ready{.batch = std::move(open.batch), .next = open.next, .broken = open.broken};
  open.batch = {};
  open.size = 0;
  open.broken = 0;
  ++open.batches;
  std::unique_lock lock(mutex_);
  batch_taken_.wait(lock, [this] {
    return is_stopping_ || static_cast<int64_t>(ready_.size()) < config_.prefetch_batches;
  });
  ready_.push_back(std::move(ready));
  batch_ready_.notify_one();
}

void Pipeline::fail(std::exception_ptr error) {
  const std::lock_guard lock(mutex_);
  failure_ = std::move(error);
  is_stopping_ = true;  // the workers go home
  slot_free_.notify_all();
  batch_ready_.notify_all();
}

std::optional<ReadyBatch> Pipeline::next() {
  std::unique_lock lock(mutex_);
  batch_ready_.wait(lock, [this] { return !ready_.empty() || failure_ || has_ended_; });
  if (!ready_.empty()) {  // what was made before a failure is still good
    ReadyBatch ready = std::move(ready_.front());
    ready_.pop_front();
    batch_taken_.notify_one();
    return ready;
  }
  if (failure_) std::rethrow_exception(failure_);
  return {};
}

}  // namespace vgen::data::detail
