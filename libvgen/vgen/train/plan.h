#pragma once
// A training run on paper: what each strategy needs of a rank's memory, what it sends, how long a
// step takes. What `vgen doctor --plan` prints. No model is allocated, nothing is opened but the
// config.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "vgen/core/config.h"
#include "vgen/dist/plan.h"
#include "vgen/train/plan_activations.h"
#include "vgen/train/task.h"

namespace vgen::train {

struct PlanOptions {
  std::string config;                  ///< YAML file of a training run
  std::vector<std::string> overrides;  ///< "global_batch_size=512"
  int64_t gpus = 1;
  std::string gpu = "h100";  ///< as dist::find_gpu
  int64_t gpus_per_node = 8;
  double mfu = 0.4;  ///< share of the GPU's peak that forward and backward passes reach, assumed
};

/// A model by its shapes.
struct PaperModel {
  std::string title;                     ///< "GPT, 24 blocks of width 3200"
  std::vector<dist::PhaseSizes> phases;  ///< of Task::phases(); EMA is not known here
  Workload workload;                     ///< as Task::workload()
  int64_t frozen_bytes = 0;              ///< weights that are only used: a tokenizer, LPIPS
  std::function<std::vector<Activations>(const ActivationSetup&)> activations;  ///< of each phase
  std::string remark;  ///< what the activations cover, where that is not all

  int64_t num_elements() const;
};

/// The model of a config that plan_run() takes. Throws Error(kInvalidArgument).
PaperModel model_on_paper(const ConfigNode& root);

struct PlanRow {
  std::string strategy;
  bool is_checkpointed = false;
  int64_t ranks = 1;                ///< none: 1, which takes the whole batch
  dist::PlannedMemory memory = {};  ///< bytes of a rank
  int64_t activations = 0;          ///< bytes of a rank, at most
  int64_t total = 0;                ///< at a time: frozen weights, and gradients beside activations
  bool is_fitting = false;          ///< total up to PlanReport::usable_bytes
  double sent_bytes = 0;            ///< by a rank in a step
  dist::PlannedTime time = {};      ///< seconds of a step
};

struct PlanReport {
  std::string model;   ///< PaperModel::title
  std::string remark;  ///< PaperModel::remark
  std::string precision;
  int64_t num_parameters = 0;
  int64_t frozen_bytes = 0;
  int64_t gpus = 1, gpus_per_node = 8;
  int64_t global_batch_size = 0, grad_accum_steps = 1, micro_batch_size = 1;
  int64_t shard_ranks = 1;  ///< hsdp
  dist::Gpu gpu = {};
  double mfu = 0;
  double peak_tflops = 0;     ///< of the GPU in `precision`
  double usable_bytes = 0;    ///< of the GPU's memory
  std::vector<PlanRow> rows;  ///< hsdp only where `gpus` is a multiple of shard_ranks
};

/// Every strategy, with and without activation checkpointing, whatever the config's own are. Throws
/// Error: for a config as `vgen train` would (kInvalidArgument, kNotFound), for an unknown GPU, for
/// a number of GPUs that the batch does not divide by.
PlanReport plan_training(const PlanOptions& options);

/// A table with what it assumes; and the same as JSON, in bytes and seconds.
std::string format_report(const PlanReport& report);
std::string report_json(const PlanReport& report);

/// The table of GPUs.
std::string format_gpus();

}  // namespace vgen::train
