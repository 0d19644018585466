#include "vgen/core/process_clock.h"

#include <unistd.h>

#include <ctime>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "vgen/core/strings.h"

namespace vgen {

std::optional<double> seconds_since_process_start() {
  std::ifstream file("/proc/self/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  // "pid (name) state ...": the name may hold anything, so count from the last parenthesis. The
  // start is field 22 of proc(5), in clock ticks since the machine was booted.
  const size_t name_end = text.rfind(") ");
  if (name_end == std::string::npos) return {};
  const std::vector<std::string> fields = split(std::string_view(text).substr(name_end + 2), ' ');
  constexpr size_t kStartTime = 22 - 3;
  int64_t start_ticks = 0;
  timespec now{};
  if (fields.size() <= kStartTime || !parse_int(fields[kStartTime], start_ticks)) return {};
  if (clock_gettime(CLOCK_BOOTTIME, &now) != 0) return {};
  const double start = static_cast<double>(start_ticks) / static_cast<double>(sysconf(_SC_CLK_TCK));
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) - start;
}

}  // namespace vgen
