#pragma once
// Work on many samples by several threads, its results taken in order.

#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "vgen/core/threads.h"

namespace vgen::data::detail {

/// Calls make(i) for i in [0, count) in `workers` threads, and consume(i, result) in the calling
/// thread, in the order of i. At most a few results a worker wait at any time. What make throws is
/// thrown here when its turn comes; then, as when consume throws, the threads are stopped first.
/// Throws Error kUnavailable when the system refuses a thread.
template <class Make, class Consume>
void for_each_in_order(int64_t count, int64_t workers, const Make& make, const Consume& consume) {
  using Result = decltype(make(int64_t{}));
  struct Slot {
    std::optional<Result> result;
    std::exception_ptr error;
  };
  std::vector<Slot> slots(static_cast<size_t>(4 * workers));
  const auto slot_of = [&](int64_t i) -> Slot& {
    return slots[static_cast<size_t>(i) % slots.size()];
  };
  std::mutex mutex;
  std::condition_variable slot_free, slot_done;
  int64_t taken = 0, consumed = 0;
  bool is_stopping = false;

  const auto work = [&] {
    std::unique_lock lock(mutex);
    while (true) {
      slot_free.wait(lock, [&] {
        return is_stopping || taken == count ||
               taken - consumed < static_cast<int64_t>(slots.size());
      });
      if (is_stopping || taken == count) return;
      const int64_t i = taken++;
      lock.unlock();
      Slot made;
      try {
        made.result.emplace(make(i));
      } catch (...) {
        made.error = std::current_exception();
      }
      lock.lock();
      slot_of(i) = std::move(made);
      slot_done.notify_one();
    }
  };
  Threads threads([&] {  // last: also when consume throws, they end before what they use
    {
      const std::lock_guard lock(mutex);
      is_stopping = true;
    }
    slot_free.notify_all();
  });
  threads.start("worker", workers, work);
  for (int64_t i = 0; i < count; ++i) {
    std::unique_lock lock(mutex);
    slot_done.wait(lock, [&] { return slot_of(i).result || slot_of(i).error; });
    Slot done = std::exchange(slot_of(i), {});
    ++consumed;
    lock.unlock();
    slot_free.notify_one();
    if (done.error) std::rethrow_exception(done.error);
    consume(i, std::move(*done.result));
  }
}

}  // namespace vgen::data::detail
