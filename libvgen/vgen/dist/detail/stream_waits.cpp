#include "vgen/dist/detail/stream_waits.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace vgen::dist::detail {

void StreamWaits::begin() {
  take_reached();  // so that no more marks are kept than the device is behind the host
  if (!begun_ && free_.empty()) {
    const auto event = [&] { return c10::Event(device_.type(), c10::EventFlag::BACKEND_DEFAULT); };
    begun_.emplace(Marks{event(), event()});
  } else if (!begun_) {
    begun_.emplace(std::move(free_.back()));
    free_.pop_back();
  }
  stream_ = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
  begun_->begin.record(*stream_);
}

void StreamWaits::end() {
  TORCH_INTERNAL_ASSERT(begun_);
  begun_->end.record(*stream_);
  under_way_.push_back(std::move(*begun_));
  begun_.reset();
}

double StreamWaits::seconds() {
  for (const Marks& marks : under_way_) marks.end.synchronize();
  take_reached();
  return seconds_;
}

void StreamWaits::take_reached() {
  while (!under_way_.empty() && under_way_.front().end.query()) {
    const Marks& marks = under_way_.front();
    seconds_ += 1e-3 * marks.begin.elapsedTime(marks.end);  // of milliseconds
    free_.push_back(std::move(under_way_.front()));
    under_way_.pop_front();
  }
}

void timed_wait(Pending& pending, StreamWaits* waits) {
  if (pending.is_done()) return;
  if (waits != nullptr) waits->begin();
  pending.wait();
  if (waits != nullptr) waits->end();
}

}  // namespace vgen::dist::detail
