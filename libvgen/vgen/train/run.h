#pragma once
// A training run from its config to its last checkpoint: what `vgen train` does.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace vgen::train {

struct TrainOptions {
  std::string config;                  ///< YAML file
  std::vector<std::string> overrides;  ///< "optimizer.lr=1e-4"
  std::string run_dir;                 ///< "" = runs/<name of the config>
  std::string resume = "never";        ///< auto: go on from the newest valid checkpoint, if any
};

struct TrainResult {
  std::string run_dir;
  int64_t steps_done = 0;
  int64_t total_steps = 0;
  bool is_complete = false;               ///< false: a signal ended it, it can be resumed
  std::map<std::string, double> metrics;  ///< of the last validation
  int64_t rank = 0;                       ///< of this process
};

/// The config with all its defaults, checked; nothing is opened or written.
std::string resolved_config(const TrainOptions& options);

/// Trains. The run folder gets config.yaml, log.txt, metrics.jsonl, tensorboard/, samples/ and
/// checkpoints/. SIGINT and SIGTERM end the run after the current step, with a checkpoint. Throws
/// Error; also when a loss or gradient is not finite: which, at which step, and what to do.
TrainResult run(const TrainOptions& options);

}  // namespace vgen::train
