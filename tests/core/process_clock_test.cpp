#include "vgen/core/process_clock.h"

#include <catch2/catch.hpp>
#include <ctime>

namespace vgen {

TEST_CASE("process clock: at least what this thread has computed, and it goes on", "[core]") {
  const auto first = seconds_since_process_start();
  REQUIRE(first);
  const auto computed = [] { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; };
  constexpr double kStep = 0.01;
  CHECK(*first >= computed() - 2 * kStep);
  CHECK(*first < 300);  // the time-out of a test: it counts from the process, not from the machine
  const double end = computed() + 5 * kStep;
  while (computed() < end) {
  }
  CHECK(*seconds_since_process_start() >= *first + 4 * kStep);
}

}  // namespace vgen
