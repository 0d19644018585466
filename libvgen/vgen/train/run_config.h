#pragma once
// The settings that every training run has, whatever it trains. A task's config has these at its
// top level, beside its own sections.

#include <cstdint>
#include <string>

#include "vgen/checkpoint/store.h"
#include "vgen/core/config.h"
#include "vgen/dist/strategy.h"
#include "vgen/train/grad_scaler.h"
#include "vgen/train/schedule.h"

namespace vgen::train {

struct RunConfig {
  std::string task = "tokenizer";  ///< what is trained: tokenizer, var_tokenizer, gpt, var
  int64_t seed = 0;                ///< root of every random decision
  int64_t steps = 0;               ///< optimizer steps of the run; 0: `epochs` counts
  int64_t epochs = 0;              ///< length of the run in passes over the data; 0: `steps` counts
  int64_t global_batch_size = 128;  ///< samples per step, over all ranks
  int64_t grad_accum_steps = 1;     ///< micro-batches that a rank cuts its share of a step into
  double max_grad_norm = 1.0;       ///< gradients of a phase are scaled down to it; 0 = never
  double ema_decay = 0;             ///< of the average weights, such as 0.9999; 0 = none are kept
  std::string precision = "bf16";   ///< computing dtype: fp32, bf16, fp16; weights stay fp32
  std::string device = "auto";      ///< auto, cpu, cuda, cuda:N
  int64_t threads = 0;              ///< of the CPU's operators; 0 = one per core
  bool allow_tf32 = true;           ///< on CUDA, for what is computed in fp32
  std::string init_from = {};       ///< weights to begin with: a file, a checkpoint, a run folder
  int64_t log_every = 100;          ///< steps between two lines of metrics
  int64_t validate_every = 5000;    ///< steps between two validations; 0 = only at the end
  int64_t preview_every = 5000;     ///< steps between two pictures of samples; 0 = only at the end
  bool tensorboard = true;          ///< also write event files
  /// Of the device, 1e12 operations/s in `precision`, that the share in use (mfu) refers to; 0 = as
  /// measured at the start with a large matrix product.
  double peak_tflops = 0;
  ScheduleConfig schedule;
  GradScalerConfig grad_scaler;  ///< of fp16
  checkpoint::CheckpointConfig checkpoint;
  dist::ParallelConfig parallel;
};
template <class Visitor>
void visit_fields(Visitor& v, RunConfig& c) {
  v("task", c.task, one_of({"tokenizer", "var_tokenizer", "gpt", "var"}));
  v("seed", c.seed, at_least(0));
  v("steps", c.steps, at_least(0));
  v("epochs", c.epochs, at_least(0));
  v("global_batch_size", c.global_batch_size, at_least(1));
  v("grad_accum_steps", c.grad_accum_steps, at_least(1));
  v("max_grad_norm", c.max_grad_norm, at_least(0));
  v("ema_decay", c.ema_decay, between(0, 1));
  v("precision", c.precision, one_of({"fp32", "bf16", "fp16"}));
  v("device", c.device);
  v("threads", c.threads, between(0, 4096));
  v("allow_tf32", c.allow_tf32);
  v("init_from", c.init_from);
  v("log_every", c.log_every, at_least(1));
  v("validate_every", c.validate_every, at_least(0));
  v("preview_every", c.preview_every, at_least(0));
  v("tensorboard", c.tensorboard);
  v("peak_tflops", c.peak_tflops, at_least(0));
  v("schedule", c.schedule);
  v("grad_scaler", c.grad_scaler);
  v("checkpoint", c.checkpoint);
  v("parallel", c.parallel);
}

/// Throws Error(kInvalidArgument) where the fields do not fit together or the ranks.
void validate(const RunConfig& config, int64_t world_size);

/// `checkpoint:` with names in the place of "auto": the metric is "psnr" where a tokenizer is
/// trained, "loss" where codes are predicted; the mode is "min" for metrics of what is wrong
/// (losses, lpips, dead_codes), "max" for all others.
checkpoint::CheckpointConfig kept_checkpoints(const RunConfig& config);

/// Samples of one micro-batch of one rank.
int64_t micro_batch_size(const RunConfig& config, int64_t world_size);

/// Optimizer steps of a pass over the data, at least 1. batches_per_epoch: micro-batches of a rank.
int64_t steps_per_epoch(const RunConfig& config, int64_t batches_per_epoch);
/// Optimizer steps of the run.
int64_t total_steps(const RunConfig& config, int64_t batches_per_epoch);

}  // namespace vgen::train
