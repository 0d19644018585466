#include "vgen/core/threads.h"

#include <system_error>

#include "vgen/core/error.h"

namespace vgen {

void check_worker_count(std::string_view name, int64_t count) {
  constexpr int64_t kMost = 1024;
  require(count >= 1 && count <= kMost, ErrorCode::kInvalidArgument, name, " is ", count,
          ": expected 1 to ", kMost, " threads");
}

Threads::~Threads() {
  stop_();
  for (std::thread& thread : threads_) thread.join();
}

void Threads::start(std::string_view role, int64_t count, const std::function<void()>& work) {
  for (int64_t started = 0; started < count; ++started) {
    try {
      threads_.emplace_back(work);
    } catch (const std::system_error& error) {
      throw_error(ErrorCode::kUnavailable, "the system gave only ", started, " of ", count, " ",
                  role, " threads: ", error.code().message(),
                  "; ask for fewer workers, or raise the limits of processes and memory (ulimit -u "
                  "and -v)");
    }
  }
}

}  // namespace vgen
