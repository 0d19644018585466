#include "vgen/dist/detail/pulse.h"

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>

#include "vgen/core/strings.h"

namespace vgen::dist::detail {

namespace {

constexpr std::chrono::milliseconds kBeat{500}, kPoll{50};

std::string key(int64_t rank) { return str_cat("pulse/", rank); }

}  // namespace

struct Pulse::State {
  c10::intrusive_ptr<c10d::Store> store;
  std::string key;
  int64_t limit_beats = 0;
  std::function<void()> on_silence;
  std::mutex mutex = {};
  std::condition_variable changed = {};
  bool is_ending = false;
  bool is_over = false;  // nothing is asked of the store any more
  int64_t silent_beats = 0;

  void end(bool is_over_now) {
    {
      const std::lock_guard lock(mutex);
      is_ending = true;
      is_over = is_over || is_over_now;
    }
    changed.notify_all();
  }

  void beat() {
    try {
      std::unique_lock lock(mutex);
      while (!is_ending) {
        lock.unlock();
        store->add(key, 1);
        lock.lock();
        silent_beats = 0;
        changed.wait_for(lock, kBeat, [this] { return is_ending; });
      }
    } catch (const std::exception&) {
      // The store is gone, and with it whoever would ask.
    }
    end(/*is_over_now=*/true);
  }

  // Its own beats instead of a clock: a process that was stopped for a while has not made any.
  void watch() {
    std::unique_lock lock(mutex);
    while (!changed.wait_for(lock, kBeat, [this] { return is_over; })) {
      if (++silent_beats < limit_beats) continue;
      lock.unlock();
      return on_silence();
    }
  }
};

Pulse::Pulse(c10d::Store& store, int64_t rank, int64_t limit_ms, std::function<void()> on_silence)
    : state_(new State{.store = store.clone(),
                       .key = key(rank),
                       .limit_beats = limit_ms / kBeat.count(),
                       .on_silence = std::move(on_silence)}) {
  thread_ = std::thread([state = state_] { state->beat(); });
  try {
    watcher_ = std::thread([state = state_] { state->watch(); });
  } catch (...) {
    abandon();
    throw;
  }
}

Pulse::~Pulse() {
  state_->end(/*is_over_now=*/false);
  if (thread_.joinable()) thread_.join();
  if (watcher_.joinable()) watcher_.join();
}

void Pulse::abandon() {
  state_->end(/*is_over_now=*/true);
  if (thread_.joinable()) thread_.detach();
  if (watcher_.joinable()) watcher_.detach();
}

std::vector<int64_t> without_pulse(c10d::Store& store, std::vector<int64_t> ranks,
                                   int64_t time_ms) {
  std::map<int64_t, int64_t> first;
  for (const int64_t rank : ranks) first[rank] = store.add(key(rank), 0);
  // So many looks, however long a look takes: a store that stalls stops every pulse.
  for (int64_t look = 0; !ranks.empty() && look < time_ms / kPoll.count(); ++look) {
    std::this_thread::sleep_for(kPoll);
    std::erase_if(ranks, [&](int64_t rank) { return store.add(key(rank), 0) != first[rank]; });
  }
  return ranks;
}

}  // namespace vgen::dist::detail
