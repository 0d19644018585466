#include "vgen/core/threads.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>

#include "support/support.h"

namespace vgen {

TEST_CASE("threads: all are told to stop once, and have ended before what they use", "[core]") {
  std::atomic<int> running = 0, stops = 0;
  std::atomic<bool> is_stopping = false;
  {
    Threads threads([&] {
      ++stops;
      is_stopping = true;
    });
    threads.start("waiting", 3, [&] {
      ++running;
      while (!is_stopping) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      --running;
    });
    while (running < 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CHECK(stops == 0);
  }
  CHECK(running == 0);
  CHECK(stops == 1);
}

TEST_CASE("threads: counts of workers are 1 to 1024", "[core]") {
  check_worker_count("workers", 1);
  check_worker_count("workers", 1024);
  CHECK(test::error_of([] { check_worker_count("data.workers", 0); }) ==
        "data.workers is 0: expected 1 to 1024 threads");
  CHECK(test::error_of([] { check_worker_count("workers", 1025); }) ==
        "workers is 1025: expected 1 to 1024 threads");
}

}  // namespace vgen
