#include "vgen/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "vgen/core/error.h"

namespace vgen::train {

namespace {

double half_cosine(double done) { return 0.5 * (1 + std::cos(std::numbers::pi * done)); }

// Share of the steps from `first` to the last one that lie behind.
double share_done(int64_t step, int64_t first, int64_t total_steps) {
  const auto length = static_cast<double>(std::max<int64_t>(1, total_steps - 1 - first));
  return std::clamp(static_cast<double>(step - first) / length, 0.0, 1.0);
}

bool is_var_kind(const std::string& kind) {
  return kind == "cos" || kind == "exp" || (kind.starts_with("lin") && kind != "linear");
}

// The part of VAR's schedules behind the warm-up.
double var_lr(const ScheduleConfig& config, double done) {
  const double end = config.final_ratio;
  if (config.kind == "cos") return end + (1 - end) * half_cosine(done);
  if (config.kind == "exp") return done <= 0.15 ? 1 : std::pow(end, (done - 0.15) / 0.85);
  const double turn = config.kind == "lin"     ? 0.15
                      : config.kind == "lin0"  ? 0.05
                      : config.kind == "lin00" ? 0
                                               : config.turn;
  double turn_lr = 1;  // at the turn
  if (config.kind == "linT") turn_lr = (1 + end + (1 - end) * (1 - turn)) / 2;
  if (done < turn) return 1 + (turn_lr - 1) * done / turn;
  return end + (turn_lr - end) * (1 - done) / std::max(1e-12, 1 - turn);
}

double lr_at(const ScheduleConfig& config, int64_t step, int64_t total_steps) {
  const bool is_var = is_var_kind(config.kind);
  if (step < config.warmup_steps) {
    const int64_t steps = is_var ? step : step + 1;
    const double share = static_cast<double>(steps) / static_cast<double>(config.warmup_steps);
    return config.warmup_start + (1 - config.warmup_start) * share;
  }
  if (config.kind == "constant") return 1;
  const double done = share_done(step, config.warmup_steps, total_steps);
  if (is_var) return var_lr(config, done);
  const double left = config.kind == "cosine" ? half_cosine(done) : 1 - done;
  return config.final_ratio + (1 - config.final_ratio) * left;
}

}  // namespace

ScheduleConfig in_steps(ScheduleConfig config, int64_t steps_per_epoch) {
  if (config.warmup_epochs == 0) return config;
  require(config.warmup_steps == 0, ErrorCode::kInvalidArgument, "schedule.warmup_steps is ",
          config.warmup_steps, " and schedule.warmup_epochs is ", config.warmup_epochs,
          "; give one of the two");
  config.warmup_steps = std::llround(config.warmup_epochs * static_cast<double>(steps_per_epoch));
  config.warmup_epochs = 0;
  return config;
}

Rates rates_at(const ScheduleConfig& config, int64_t step, int64_t total_steps) {
  const double ratio = config.weight_decay_final_ratio;
  const double left = half_cosine(share_done(step, 0, total_steps));
  return {.lr = lr_at(config, step, total_steps), .weight_decay = ratio + (1 - ratio) * left};
}

}  // namespace vgen::train
