#pragma once
// What is trained: the trainer knows models through this interface alone. A new model is a new
// Task and one row in plan_run().

#include <torch/torch.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "vgen/checkpoint/store.h"
#include "vgen/core/config.h"
#include "vgen/data/loader.h"
#include "vgen/dist/group.h"
#include "vgen/train/metrics.h"
#include "vgen/train/optimizer.h"
#include "vgen/train/run_config.h"

namespace vgen::train {

/// Parameters that one optimizer updates by one loss. A step runs its phases in order: a GPT has
/// one, a VQGAN two (generator, discriminator).
struct Phase {
  std::string name;  ///< "gen"; names metrics and optimizer state; "" where there is only one
  OptimizerConfig optimizer;
  checkpoint::NamedTensors parameters;
  /// Modules that the model runs through run_block(): what is gathered and computed again as one.
  std::vector<std::shared_ptr<torch::nn::Module>> blocks = {};
  bool is_float32 = false;  ///< blocks compute with float32 weights, whatever the precision
};

/// What to differentiate, and its terms by name for the metrics: detached scalars.
struct PhaseLoss {
  torch::Tensor loss;
  std::vector<std::pair<std::string, torch::Tensor>> terms;
  /// The task has written to parameters that are in no block, the same on every rank.
  bool has_written_parameters = false;
};

/// What one training sample costs, for the figures of speed.
struct Workload {
  int64_t tokens_per_sample = 0;  ///< 0: the model does not count in tokens
  /// Operations of a forward and a backward pass. Per token 6 for each weight of a matrix product,
  /// and 12 * layers * dim * tokens for attention, the causal half not taken off (arXiv:2204.02311,
  /// appendix B). Of tokenizers: tokenizer_cost.h. 0: unknown.
  double flops_per_sample = 0;
};

/// What the trainer decides before the task is made.
struct TaskContext {
  c10::Device device = c10::kCPU;
  c10::ScalarType precision = c10::kFloat;
  int64_t rank = 0;
  int64_t world_size = 1;
  int64_t micro_batch_size = 1;
  uint64_t seed = 0;
  bool is_training = true;       ///< false: only the models are needed, no data is opened
  dist::Group* group = nullptr;  ///< of all ranks; null: this is the only one

  /// Sums over the ranks, in place. Collective.
  void sum_over_ranks(std::vector<double>& values) const;
  /// True on every rank if it is true on one. Collective.
  bool any_rank(bool value) const;
};

/// The batches of a validation, the same number on every rank: a model that is spread over the
/// ranks needs all of them for each. `use` gets a batch and whether it counts: a rank that has no
/// more gets its last one again, uncounted.
template <class Batch, class Source, class Use>
void for_each_batch(const TaskContext& context, Source& source, const Use& use) {
  std::optional<Batch> last;
  bool counts = true;
  while (true) {
    std::optional<Batch> batch;
    if (counts) batch = source.next_in_pass();  // after its end another pass would begin
    counts = batch.has_value();
    if (!context.any_rank(counts)) return;
    if (counts) last = std::move(batch);
    if (last) use(*last, counts);
  }
}

class Task {
 public:
  virtual ~Task() = default;

  /// The model that is kept: model.safetensors, and what EMA averages.
  virtual torch::nn::Module& model() = 0;
  /// What the files of the model and of its averages say besides their tensors.
  virtual io::Metadata metadata() const { return {}; }
  /// Modules that are checkpointed besides, by the name of their file: "discriminator".
  virtual std::vector<std::pair<std::string, torch::nn::Module*>> companions() { return {}; }
  virtual std::vector<Phase> phases() = 0;
  /// Names of the terms that the progress line shows.
  virtual std::vector<std::string> headline() const = 0;
  /// What the progress line says of the means of the last steps: "loss 2.9228 | accuracy 0.1031" of
  /// those of the headline.
  virtual std::string headline_text(const Metrics& means) const;
  virtual Workload workload() const { return {}; }

  // --- training; the order of calls in a step is next_batches, then for each phase loss() of each
  // micro-batch ---

  /// Takes the micro-batches of one step from the loader, onto the device.
  virtual void next_batches(int64_t count) = 0;
  /// `step` counts from 1. Later phases may use what earlier ones computed of this micro-batch.
  virtual PhaseLoss loss(size_t phase, size_t micro_batch, int64_t step) = 0;

  virtual data::LoaderPosition position() const = 0;
  virtual void seek(const data::LoaderPosition& position) = 0;
  virtual data::LoaderStats data_stats() const = 0;
  virtual int64_t batches_per_epoch() const = 0;  ///< micro-batches of this rank

  // --- looking at it; the trainer puts the averaged weights in place before ---

  /// Metrics over the validation data of all ranks by name, empty without such data. Collective.
  virtual std::map<std::string, double> validate() = 0;
  /// Whether preview() may have something to show; the same on all ranks. It needs the whole model.
  virtual bool has_preview() const { return true; }
  /// A picture for people, uint8 (H, W, 3); none without data to show.
  virtual std::optional<torch::Tensor> preview() = 0;

  /// Weights of a file into the model and its companions: `init_from`.
  virtual void init_from(const std::string& path) = 0;
};

/// What a task's loaders take from its context, for batches of that size.
data::LoaderOptions loader_options(const TaskContext& context, int64_t batch_size);

/// A config that was read and checked, before anything is built of it.
struct RunPlan {
  RunConfig run;
  std::string resolved;  ///< every field, YAML
  std::function<std::unique_ptr<Task>(const TaskContext&)> make_task;
};

/// Reads the config of whatever task it names. Throws Error(kInvalidArgument).
RunPlan plan_run(const ConfigNode& root);

}  // namespace vgen::train
