#include "vgen/dist/launch.h"

#include <cstdlib>
#include <optional>

#include "vgen/core/error.h"

namespace vgen::dist {
namespace {

std::optional<int64_t> number_of(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return {};
  int64_t value = 0;
  require(parse_int(text, value), ErrorCode::kInvalidArgument, "the environment variable ", name,
          " is '", printable(text), "', expected a number");
  return value;
}

}  // namespace

Launch launch_from_environment() {
  const auto world_size = number_of("WORLD_SIZE");
  if (!world_size) return {};
  const Launch launch{.rank = number_of("RANK").value_or(-1),
                      .world_size = *world_size,
                      .local_rank = number_of("LOCAL_RANK").value_or(0)};
  require(launch.world_size >= 1 && launch.rank >= 0 && launch.rank < launch.world_size &&
              launch.local_rank >= 0,
          ErrorCode::kInvalidArgument, "the environment has RANK ", launch.rank, ", WORLD_SIZE ",
          launch.world_size, " and LOCAL_RANK ", launch.local_rank,
          ": expected 0 <= RANK < WORLD_SIZE");
  return launch;
}

}  // namespace vgen::dist
