#pragma once
// Seconds and memory of a piece of work.

#include <c10/core/Device.h>

#include <cstdint>
#include <functional>

namespace vgen::bench::detail {

/// Median over `repeats` runs of `body`, after one that is not counted; the device is waited for.
double median_seconds(c10::Device device, int64_t repeats, const std::function<void()>& body);

/// Linux: forgets the peak of the resident memory so far.
void reset_peak_rss();
/// The peak of the resident memory; 0 where the system cannot tell.
double peak_rss_mb();

}  // namespace vgen::bench::detail
