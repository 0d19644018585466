#pragma once
// Which ranks are alive: a thread of each process counts up a key of the store, whatever else the
// process waits for. And whether the store is there: another one counts how long it has not
// answered.

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

namespace vgen::dist::detail {

/// While this lives, the rank counts as alive. Over a connection of its own: one that waits for a
/// key serves nobody else.
class Pulse {
 public:
  /// A store may not answer for as long as TCP tries to reach it, and who asks it something waits
  /// meanwhile. After limit_ms without an answer on_silence is called once, by a thread of this.
  /// Time in which the process was stopped does not count, nor a store that is known to be gone.
  Pulse(c10d::Store& store, int64_t rank, int64_t limit_ms, std::function<void()> on_silence);
  ~Pulse();
  Pulse(const Pulse&) = delete;
  Pulse& operator=(const Pulse&) = delete;

  /// Ends it without waiting for a store that may not answer any more.
  void abandon();

 private:
  struct State;

  std::shared_ptr<State> state_;  ///< with the threads, which may outlive this after abandon()
  std::thread thread_, watcher_;
};

/// Of `ranks` those whose pulse stands still for `time_ms`, some beats at least; it returns as soon
/// as all have shown one. Throws what c10d throws where the store is gone.
std::vector<int64_t> without_pulse(c10d::Store& store, std::vector<int64_t> ranks, int64_t time_ms);

}  // namespace vgen::dist::detail
