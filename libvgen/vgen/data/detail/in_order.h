#pragma once
// Work on many samples by several threads, its results taken in order.

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace vgen::data::detail {

/// Calls make(i) for i in [0, count) in `workers` threads, and consume(i, result) in the calling
/// thread, in the order of i. At most a few results a worker wait at any time. What make throws is
/// thrown here when its turn comes; then, as when consume throws, the threads are stopped first.
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
  std::vector<std::jthread> threads;
  struct Stop {  // before the threads are joined, also when consume throws
    std::function<void()> run;
    ~Stop() { run(); }
  };
  const Stop stop{[&] {
    {
      const std::lock_guard lock(mutex);
      is_stopping = true;
    }
    slot_free.notify_all();
    threads.clear();
  }};
  for (int64_t w = 0; w < workers; ++w) threads.emplace_back(work);
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
