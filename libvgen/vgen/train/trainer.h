#pragma once
// One training step, for every task, and the state that a run needs to go on.

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "vgen/checkpoint/store.h"
#include "vgen/dist/strategy.h"
#include "vgen/train/ema.h"
#include "vgen/train/grad_scaler.h"
#include "vgen/train/optimizer.h"
#include "vgen/train/task.h"

namespace vgen::train {

class Trainer {
 public:
  /// `task` and `strategy` must outlive it.
  Trainer(const RunConfig& config, Task& task, dist::Strategy& strategy, c10::Device device);

  /// Takes micro-batches from the loader, then runs each phase of the task: losses, gradients,
  /// clipping, update; last the averages. A phase whose gradients are not finite changes no weight.
  /// Returns the terms of all phases and the norm of the gradients of each before clipping
  /// ("gen_grad_norm"): means over the micro-batches, scalars on the device, which is not waited
  /// for. Collective.
  std::vector<std::pair<std::string, at::Tensor>> step();

  int64_t steps_done() const { return step_; }
  int64_t total_steps() const { return total_steps_; }
  double last_lr() const;  ///< learning rate of the first phase in the last step

  Task& task() { return task_; }
  const std::vector<std::unique_ptr<GradScaler>>& scalers() const { return scalers_; }

  /// While this lives, the model has the averaged weights, if there are any.
  std::optional<Ema::Swap> use_average() {
    return ema_ ? std::optional<Ema::Swap>(std::in_place, *ema_) : std::nullopt;
  }

  /// All of the state. The tensors are shared, not copied: save before the next step.
  checkpoint::Snapshot snapshot() const;
  /// Puts back what a checkpoint of snapshot() holds. Throws Error, with the file's name, when it
  /// does not fit; what was restored until then stays.
  void restore(const checkpoint::CheckpointInfo& checkpoint);

 private:
  std::vector<std::pair<std::string, at::Tensor>> run_phase(size_t phase);

  RunConfig config_;
  Task& task_;
  dist::Strategy& strategy_;
  std::vector<std::string> phase_names_;
  double base_lr_ = 0;                                ///< of the first phase
  std::vector<Optimizer> optimizers_;                 ///< of each phase
  std::vector<std::unique_ptr<GradScaler>> scalers_;  ///< of each phase
  std::optional<Ema> ema_;
  int64_t step_ = 0;
  int64_t total_steps_ = 0;
};

}  // namespace vgen::train
