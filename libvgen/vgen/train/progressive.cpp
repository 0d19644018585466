#include "vgen/train/progressive.h"

#include <algorithm>
#include <cmath>

namespace vgen::train {

namespace {

// Never falls from step to step.
int64_t last_scale_at(const ProgressiveConfig& config, int64_t num_scales, const RunLength& length,
                      int64_t step) {
  const double end = config.share * static_cast<double>(length.total_steps);
  if (step <= length.warmup_steps) return config.first_scale;
  if (static_cast<double>(step) >= end) return num_scales - 1;
  const auto warmup = static_cast<double>(length.warmup_steps);
  const double done = std::clamp((static_cast<double>(step) - warmup) / (end - warmup), 0.0, 1.0);
  const auto added = static_cast<double>(num_scales - 1 - config.first_scale);
  return config.first_scale + static_cast<int64_t>(std::nearbyint(done * added));
}

}  // namespace

ProgressiveStage progressive_stage(const ProgressiveConfig& config, int64_t num_scales,
                                   const RunLength& length, int64_t step) {
  if (config.share == 0) return {.last_scale = num_scales - 1};
  const int64_t scale = last_scale_at(config, num_scales, length, step);
  if (scale == config.first_scale || scale == num_scales - 1) return {.last_scale = scale};

  int64_t before = 0, first = step;  // a step of an earlier stage; the first step of this one
  while (first - before > 1) {
    const int64_t middle = (before + first) / 2;
    (last_scale_at(config, num_scales, length, middle) < scale ? before : first) = middle;
  }
  const double warmup_steps =
      config.warmup_epochs > 0 ? config.warmup_epochs * static_cast<double>(length.steps_per_epoch)
                               : static_cast<double>(length.total_steps) / 300;
  const auto steps_in_stage = static_cast<double>(step - first + 1);
  return {.last_scale = scale,
          .newest_weight = std::clamp(steps_in_stage / warmup_steps, 0.01, 1.0)};
}

}  // namespace vgen::train
