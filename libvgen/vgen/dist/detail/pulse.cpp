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
  std::mutex mutex = {};
  std::condition_variable ended = {};
  bool is_ending = false;

  void run() {
    try {
      std::unique_lock lock(mutex);
      while (!is_ending) {
        lock.unlock();
        store->add(key, 1);
        lock.lock();
        ended.wait_for(lock, kBeat, [this] { return is_ending; });
      }
    } catch (const std::exception&) {
      // The store is gone, and with it whoever would ask.
    }
  }
};

Pulse::Pulse(c10d::Store& store, int64_t rank)
    : state_(new State{.store = store.clone(), .key = key(rank)}),
      thread_([state = state_] { state->run(); }) {}

Pulse::~Pulse() {
  end();
  if (thread_.joinable()) thread_.join();
}

void Pulse::end() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->is_ending = true;
  }
  state_->ended.notify_one();
}

void Pulse::abandon() {
  end();
  if (thread_.joinable()) thread_.detach();
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
