#pragma once
// How long a device stood still for collectives. The host does not tell: it gives out what is to be
// done and goes on, also where the stream of the device has to wait.

#include <c10/core/Event.h>

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "vgen/dist/group.h"

namespace vgen::dist::detail {

/// Adds up the times that a stream takes from one mark to the next. Marks are events with times in
/// the current stream; of what lies between two of them only waits should take long. One thread at
/// a time.
class StreamWaits {
 public:
  /// device: one with streams and events, such as CUDA; all marks are in its streams.
  explicit StreamWaits(c10::Device device) : device_(device) {}

  /// Marks where a wait begins. One that is never ended does not count.
  void begin();
  /// Marks, in the same stream, where it ends. After a begin().
  void end();

  /// Sum over all waits so far, in seconds. Waits until the device has come to the last mark.
  double seconds();

 private:
  struct Marks {
    c10::Event begin, end;
  };
  void take_reached();

  c10::Device device_;
  std::optional<c10::Stream> stream_;  // of the wait that has begun
  std::optional<Marks> begun_;
  std::deque<Marks> under_way_;  // the oldest first
  std::vector<Marks> free_;      // to be used again
  double seconds_ = 0;
};

/// pending.wait(), between marks of `waits` unless that is null.
void timed_wait(Pending& pending, StreamWaits* waits);

}  // namespace vgen::dist::detail
