#pragma once
// Seconds and memory of a piece of work, and the size of models.

#include <c10/core/Device.h>

#include <cstdint>
#include <functional>

#include "vgen/infer/model_weights.h"

namespace vgen::bench::detail {

/// Median over `repeats` runs of `body`, after one that is not counted; the device is waited for.
double median_seconds(c10::Device device, int64_t repeats, const std::function<void()>& body);

/// Of all tensors of a model.
int64_t num_elements(const infer::ModelWeights& weights);

/// Linux: forgets the peak of the resident memory so far.
void reset_peak_rss();
/// The peak of the resident memory; 0 where the system cannot tell.
double peak_rss_mb();

}  // namespace vgen::bench::detail
