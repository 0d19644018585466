#pragma once
// Learning rate and weight decay over the steps of a run.

#include <cstdint>
#include <string>

#include "vgen/core/config.h"

namespace vgen::train {

struct ScheduleConfig {           // YAML section `schedule:`
  std::string kind = "constant";  ///< constant, cosine, linear
  int64_t warmup_steps = 0;       ///< steps over which the rate rises linearly to its full value
  double warmup_start = 0;        ///< share of the full rate before the first warm-up step
  double final_ratio = 0;         ///< cosine, linear: share of the full rate at the last step
};
template <class Visitor>
void visit_fields(Visitor& v, ScheduleConfig& c) {
  v("kind", c.kind, one_of({"constant", "cosine", "linear"}));
  v("warmup_steps", c.warmup_steps, at_least(0));
  v("warmup_start", c.warmup_start, between(0, 1));
  v("final_ratio", c.final_ratio, between(0, 1));
}

/// Factors on the configured learning rate and weight decay.
struct Rates {
  double lr = 1;
  double weight_decay = 1;  ///< stays 1 here; schedules that anneal it (VAR's) differ
};

/// The factors of a step. `step` counts from 0; `total_steps` is the length of the run. Warm-up:
/// step s has warmup_start + (1 - warmup_start) * (s + 1) / warmup_steps; afterwards the decay runs
/// from 1 at the end of the warm-up to final_ratio at the last step.
Rates rates_at(const ScheduleConfig& config, int64_t step, int64_t total_steps);

}  // namespace vgen::train
