#include "vgen/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace vgen::train {

Rates rates_at(const ScheduleConfig& config, int64_t step, int64_t total_steps) {
  if (step < config.warmup_steps) {
    const double share = static_cast<double>(step + 1) / static_cast<double>(config.warmup_steps);
    return {.lr = config.warmup_start + (1 - config.warmup_start) * share};
  }
  if (config.kind == "constant") return {};
  const auto length =
      static_cast<double>(std::max<int64_t>(1, total_steps - 1 - config.warmup_steps));
  const double done =
      std::clamp(static_cast<double>(step - config.warmup_steps) / length, 0.0, 1.0);
  const double left =
      config.kind == "cosine" ? 0.5 * (1 + std::cos(std::numbers::pi * done)) : 1 - done;
  return {.lr = config.final_ratio + (1 - config.final_ratio) * left};
}

}  // namespace vgen::train
