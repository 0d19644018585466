#include "vgen/extract/detail/crop_stream.h"

namespace vgen::extract::detail {

CropStream::CropStream(std::vector<int64_t> images, int64_t workers, MakeCrops make)
    : images_(std::move(images)), make_(std::move(make)) {
  slots_.resize(static_cast<size_t>(2 * workers + 2));
  threads_.start("decoding", workers, [this] { work(); });
}

void CropStream::stop() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  free_.notify_all();
}

void CropStream::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    free_.wait(lock, [this] { return is_stopping_ || taken_ - given_ < slots_.size(); });
    if (is_stopping_ || taken_ == images_.size()) return;
    const size_t place = taken_++;
    lock.unlock();

    Slot made;  // the slot itself belongs to the lock
    made.crops.image = images_[place];
    made.is_done = true;
    try {
      made.crops.crops = make_(made.crops.image);
    } catch (const Error& error) {
      made.crops.broken = error;
    } catch (...) {
      made.failure = std::current_exception();
    }

    lock.lock();
    slots_[place % slots_.size()] = std::move(made);
    done_.notify_one();
  }
}

Crops CropStream::next() {
  std::unique_lock lock(mutex_);
  require(given_ < images_.size(), ErrorCode::kInternal, "crop stream: asked beyond its end");
  Slot& slot = slots_[given_ % slots_.size()];
  done_.wait(lock, [&] { return slot.is_done; });
  Slot result = std::move(slot);
  slot = {};
  ++given_;
  free_.notify_one();
  if (result.failure) std::rethrow_exception(result.failure);
  return std::move(result.crops);
}

}  // namespace vgen::extract::detail
