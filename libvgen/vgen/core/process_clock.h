#pragma once
// How long this process has been running.

#include <optional>

namespace vgen {

/// Seconds since the process was started, by its parent's fork: what an exec or the loading of
/// libraries took counts. Steps of 10 ms. None where there is no /proc. Thread-safe.
std::optional<double> seconds_since_process_start();

}  // namespace vgen
