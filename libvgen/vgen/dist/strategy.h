#pragma once
// How one training step is spread over processes. The trainer knows this interface alone, so its
// loop is the same for one process and for many.
//
//   none   one process
//   ddp    every rank has everything; gradients are averaged (c10d's reducer)
//   zero1  every rank has the weights, and its part of the optimizer's state
//   fsdp   every rank has its part of weights, gradients and optimizer state; a block is gathered
//          while it computes
//   hsdp   fsdp among `shard_ranks` ranks (those of a host), ddp between such groups
//
// Every method is collective: each rank calls it, in the same order.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vgen/core/config.h"
#include "vgen/dist/group.h"
#include "vgen/tensor/block.h"

namespace vgen::dist {

namespace detail {
class StreamWaits;
}

struct ParallelConfig {           // YAML section `parallel:`
  std::string strategy = "none";  ///< none, ddp, zero1, fsdp, hsdp
  int64_t shard_ranks = 0;        ///< hsdp: ranks that share one copy; 0 = those of a host
  double bucket_mb = 25;          ///< ddp: gradients that are averaged in one go
  /// fsdp, hsdp: dtype in which blocks are gathered and compute; auto = the run's precision. The
  /// blocks of tokenizers, what lies outside of blocks and the parts that the optimizer updates are
  /// fp32 in any case.
  std::string param_dtype = "auto";
  std::string reduce_dtype = "fp32";      ///< zero1, fsdp, hsdp: in which gradients are summed
  int64_t prefetch_blocks = 1;            ///< fsdp, hsdp: gathered ahead of the one that computes
  bool activation_checkpointing = false;  ///< blocks compute twice and keep only their inputs
  int64_t timeout_s = 600;                ///< for a rank to join, and for every collective
};
template <class Visitor>
void visit_fields(Visitor& v, ParallelConfig& c) {
  v("strategy", c.strategy, one_of({"none", "ddp", "zero1", "fsdp", "hsdp"}));
  v("shard_ranks", c.shard_ranks, at_least(0));
  v("bucket_mb", c.bucket_mb, more_than(0));
  v("param_dtype", c.param_dtype, one_of({"auto", "fp32", "bf16", "fp16"}));
  v("reduce_dtype", c.reduce_dtype, one_of({"fp32", "bf16"}));
  v("prefetch_blocks", c.prefetch_blocks, between(0, 8));
  v("activation_checkpointing", c.activation_checkpointing);
  v("timeout_s", c.timeout_s, at_least(1));
}

/// What one optimizer trains. Names are those of the model's state.
struct PhaseModel {
  std::vector<std::string> names;
  std::vector<at::Tensor> parameters;
  std::vector<std::shared_ptr<torch::nn::Module>> blocks;  ///< as the model runs them
  bool is_float32 = false;  ///< blocks need float32 weights, whatever param_dtype is
};

/// What this rank updates of a parameter: `values` are the elements from `begin` on of the
/// parameter as one row. Its gradient is that of the mean over all ranks.
struct ParameterPart {
  std::string name;
  std::vector<int64_t> sizes;  ///< of the whole parameter
  int64_t begin = 0;
  at::Tensor values;  ///< float32; the parameter itself where it is whole
};

class Strategy {
 public:
  virtual ~Strategy();

  Group& group() { return *group_; }
  int64_t rank() const { return group_->rank(); }
  int64_t world_size() const { return group_->size(); }

  /// Takes the models over, once, before anything of them is used: rank 0's weights become those of
  /// all (the parameters and `buffers`). Afterwards values of parameters may be elsewhere, but
  /// within a Step or a Whole.
  virtual void attach(const std::vector<PhaseModel>& phases,
                      const std::vector<at::Tensor>& buffers) = 0;

  /// What this rank's optimizer of a phase updates: one part of each parameter, in their order, of
  /// no elements where the rank has none of it. The tensors stay the same.
  virtual std::vector<ParameterPart> parts(size_t phase) = 0;

  /// The runner to hold while forward passes compute (null: none is needed); before it, begin().
  virtual BlockRunner* runner() { return nullptr; }
  /// Before a forward pass, of training or validation: what lies outside of blocks is gathered.
  virtual void begin() {}
  /// After the last use of the model in a phase or a validation: the opposite.
  virtual void end() {}

  /// Adds the gradients of `loss`, a scalar, to those of the phase's parts. `sync_gradients` is
  /// true for the last micro-batch of a step: only then parts have gradients, those of the mean of
  /// all ranks' losses.
  virtual void backward(size_t phase, const at::Tensor& loss, bool sync_gradients) = 0;

  /// The L2 norm of all gradients of a phase together (a float32 scalar on their device; parameters
  /// without a gradient count as zero). Scales the gradients by max_norm / (norm + 1e-6) if that is
  /// below 1, as torch.nn.utils.clip_grad_norm_ does; max_norm 0 measures only.
  virtual at::Tensor clip_grad_norm(size_t phase, double max_norm) = 0;

  /// After the model itself has written to parameters of a phase that are in no block, between
  /// begin() and end() and before backward(), the same values on every rank: the parts follow.
  virtual void take_over(size_t /*phase*/) {}

  /// After the parts of a phase have changed, by the optimizer or otherwise. When it returns they
  /// may change again.
  virtual void updated(size_t phase) = 0;

  /// While the result lives, every parameter has its whole value on every rank: for what looks at
  /// the model from outside (a preview, a checkpoint). The values are those of the parts.
  virtual std::shared_ptr<void> whole() { return nullptr; }

  /// Whether parts() are less than the parameters: then each rank saves its own.
  virtual bool is_sharded() const { return false; }

  /// What this rank has moved, in all groups of the strategy. Its wait_seconds are the host's.
  virtual Traffic traffic() const { return group_->traffic(); }

  /// Seconds that this rank has stood still for collectives so far: the host, where parameters are
  /// on the CPU; else the stream that computes, for waits of the strategy itself (not of layers
  /// that talk to group()). Returns when the device has come to the last of them. Not collective.
  double wait_seconds();

  /// Sum over the ranks of a tensor that has the same shape on each, in place.
  void sum_over_ranks(const at::Tensor& value);
  /// True on every rank if it is true on one: a signal reaches ranks at different times.
  bool any_rank(bool value);

 protected:
  explicit Strategy(std::unique_ptr<Group> group);

  /// For attach(), before anything is waited for.
  void time_waits(const std::vector<PhaseModel>& phases);
  /// Null where the host's own time counts.
  detail::StreamWaits* stream_waits() { return stream_waits_.get(); }

 private:
  std::unique_ptr<Group> group_;
  std::unique_ptr<detail::StreamWaits> stream_waits_;
};

/// compute_dtype: the run's precision; ranks_per_host, host: for hsdp, see make_sharded(). One
/// process has no use for a strategy and gets `none`. Throws Error(kInvalidArgument) where strategy
/// and number of ranks do not fit.
std::unique_ptr<Strategy> make_strategy(const ParallelConfig& config, std::unique_ptr<Group> group,
                                        c10::ScalarType compute_dtype, int64_t ranks_per_host,
                                        const std::string& host = host_id());

/// Of one process.
std::unique_ptr<Strategy> single_process(const ParallelConfig& config = {});

}  // namespace vgen::dist
