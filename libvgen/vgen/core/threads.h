#pragma once
// Threads that do not outlive their owner, whatever fails on the way.

#include <cstdint>
#include <functional>
#include <string_view>
#include <thread>
#include <vector>

namespace vgen {

/// Throws Error kInvalidArgument unless `count` is 1 to 1024; `name` is that of the setting.
void check_worker_count(std::string_view name, int64_t count);

/// Make it the owner's last member: it then ends before what its threads use.
class Threads {
 public:
  /// `stop` tells the running threads to return; called once, before they are joined.
  explicit Threads(std::function<void()> stop) : stop_(std::move(stop)) {}
  /// Stops and joins them.
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  /// Starts `count` threads of `work`. Throws Error kUnavailable when the system refuses one,
  /// naming them as "`count` `role` threads"; those that run end with this object.
  void start(std::string_view role, int64_t count, const std::function<void()>& work);

 private:
  std::function<void()> stop_;
  std::vector<std::thread> threads_;
};

}  // namespace vgen
