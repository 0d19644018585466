#include "vgen/dist/launch.h"

#include <catch2/catch.hpp>
#include <cstdlib>

#include "support/support.h"

using namespace vgen;
using Catch::Matchers::Contains;

namespace {

/// The environment of a launch, and none afterwards.
class Environment {
 public:
  Environment(const char* rank, const char* world_size, const char* local_rank) {
    set("RANK", rank);
    set("WORLD_SIZE", world_size);
    set("LOCAL_RANK", local_rank);
  }
  ~Environment() {
    for (const char* name : {"RANK", "WORLD_SIZE", "LOCAL_RANK"}) ::unsetenv(name);
  }

 private:
  static void set(const char* name, const char* value) {
    value == nullptr ? ::unsetenv(name) : ::setenv(name, value, 1);
  }
};

}  // namespace

TEST_CASE("launch: what torchrun sets", "[dist]") {
  {
    const Environment environment(nullptr, nullptr, nullptr);
    CHECK(dist::launch_from_environment().world_size == 1);
  }
  {
    const Environment environment("11", "16", "3");
    const dist::Launch launch = dist::launch_from_environment();
    CHECK(launch.rank == 11);
    CHECK(launch.world_size == 16);
    CHECK(launch.local_rank == 3);
  }
  const auto error = [](const char* rank, const char* world_size) {
    const Environment environment(rank, world_size, nullptr);
    return test::error_of([] { dist::launch_from_environment(); });
  };
  CHECK_THAT(error("2", "2"), Contains("RANK 2, WORLD_SIZE 2") && Contains("RANK < WORLD_SIZE"));
  CHECK_THAT(error(nullptr, "2"), Contains("RANK -1"));
  CHECK_THAT(error("0", "two"), Contains("WORLD_SIZE is 'two', expected a number"));
}
