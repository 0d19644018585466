#include "vgen/train/run_config.h"

#include <algorithm>

#include "vgen/core/error.h"

namespace vgen::train {

namespace {

// A validation metric of which less is better.
bool is_of_faults(const std::string& metric) {
  return metric.find("loss") != std::string::npos || metric == "lpips" || metric == "dead_codes";
}

}  // namespace

void validate(const RunConfig& config, int64_t world_size) {
  require((config.steps > 0) != (config.epochs > 0), ErrorCode::kInvalidArgument, "steps is ",
          config.steps, " and epochs is ", config.epochs, "; give one of the two a positive value");
  const int64_t parts = world_size * config.grad_accum_steps;
  require(config.global_batch_size % parts == 0, ErrorCode::kInvalidArgument,
          "global_batch_size is ", config.global_batch_size, ", which does not divide by ",
          world_size, " ranks times ", config.grad_accum_steps, " micro-batches; ",
          (config.global_batch_size / parts + 1) * parts, " would");
}

checkpoint::CheckpointConfig kept_checkpoints(const RunConfig& config) {
  checkpoint::CheckpointConfig kept = config.checkpoint;
  const bool is_tokenizer = config.task == "tokenizer" || config.task == "var_tokenizer";
  if (kept.best_metric == "auto") kept.best_metric = is_tokenizer ? "psnr" : "loss";
  if (kept.best_mode == "auto") kept.best_mode = is_of_faults(kept.best_metric) ? "min" : "max";
  return kept;
}

int64_t micro_batch_size(const RunConfig& config, int64_t world_size) {
  return config.global_batch_size / (world_size * config.grad_accum_steps);
}

int64_t steps_per_epoch(const RunConfig& config, int64_t batches_per_epoch) {
  return std::max<int64_t>(1, batches_per_epoch / config.grad_accum_steps);
}

int64_t total_steps(const RunConfig& config, int64_t batches_per_epoch) {
  return config.steps > 0 ? config.steps
                          : config.epochs * steps_per_epoch(config, batches_per_epoch);
}

}  // namespace vgen::train
