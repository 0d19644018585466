#pragma once
// One training step, for every task, and the state that a run needs to go on.

#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
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
  /// Hands the models to the strategy, and makes the optimizers of what it leaves to this rank.
  /// `task` and `strategy` must outlive it. Collective.
  Trainer(const RunConfig& config, Task& task, dist::Strategy& strategy, c10::Device device);

  /// Takes micro-batches from the loader, then runs each phase of the task: losses, gradients,
  /// clipping, update; last the averages. A phase whose gradients are not finite changes no weight.
  /// Returns the terms of all phases and the norm of the gradients of each before clipping
  /// ("gen_grad_norm"): means over micro-batches and ranks, scalars on the device, which is not
  /// waited for. Collective.
  std::vector<std::pair<std::string, at::Tensor>> step();

  int64_t steps_done() const { return step_; }
  int64_t total_steps() const { return total_steps_; }
  double last_lr() const;  ///< learning rate of the first phase in the last step

  Task& task() { return task_; }
  const std::vector<std::unique_ptr<GradScaler>>& scalers() const { return scalers_; }

  /// While this lives, the model has the averaged weights, if there are any. Collective.
  class Average {
   public:
    explicit Average(Trainer& trainer)
        : trainer_(trainer), num_exceptions_(std::uncaught_exceptions()) {
      change();
    }
    /// After an error the ranks are no more in step: the model stays as it is.
    ~Average() noexcept(false) {
      if (std::uncaught_exceptions() == num_exceptions_) change();
    }
    Average(const Average&) = delete;
    Average& operator=(const Average&) = delete;

   private:
    void change();
    Trainer& trainer_;
    int num_exceptions_;
  };

  /// All of the state. The tensors are shared, not copied: save before the next step. Collective.
  checkpoint::Snapshot snapshot() const;
  /// Puts back what a checkpoint of snapshot() holds, whatever the number of ranks and the strategy
  /// that wrote it; each rank reads only its part. Throws Error, with the file's name, when it does
  /// not fit; what was restored until then stays.
  void restore(const checkpoint::CheckpointInfo& checkpoint);

 private:
  using Terms = std::vector<std::pair<std::string, at::Tensor>>;
  void attach_models();
  Terms run_phase(size_t phase);
  Terms mean_over_ranks(const Terms& terms);
  NamedTensors state_of(const torch::nn::Module& module) const;
  NamedTensors averaged_state() const;
  NamedTensors optimizer_state() const;
  std::vector<data::LoaderPosition> positions_of_ranks() const;
  data::LoaderPosition own_position(const io::Json& data) const;

  RunConfig config_;
  Task& task_;
  dist::Strategy& strategy_;
  std::vector<std::string> phase_names_;
  /// What this rank has of each parameter, by the parameter.
  std::unordered_map<const at::TensorImpl*, checkpoint::NamedTensor> parts_;
  double base_lr_ = 0;                                ///< of the first phase
  std::vector<Optimizer> optimizers_;                 ///< of each phase
  std::vector<std::unique_ptr<GradScaler>> scalers_;  ///< of each phase
  std::optional<Ema> ema_;
  int64_t step_ = 0;
  int64_t total_steps_ = 0;
};

}  // namespace vgen::train
