#pragma once
// Strategies that keep a part of everything on each rank (ZeRO, arXiv:1910.02054; FSDP,
// arXiv:2304.11277):
//
//   zero1  weights are whole everywhere; gradients are summed to the rank whose optimizer has the
//          part, and the updated parts gathered again
//   fsdp   weights are parts too; a block is gathered for its forward pass and again for its
//          backward pass
//   hsdp   fsdp within groups of `shard_ranks` ranks; the groups sum their gradients. Ranks of one
//          host share a group, whatever the order in which the launcher has numbered them
//
// A block of PhaseModel::blocks and what lies outside of all blocks of a phase are the units. Each
// is one row of numbers (detail/unit.h), cut in as many parts as ranks share a copy. Parameters of
// the model become contiguous views of that row, also those that were laid out channels-last, in
// blocks in the compute dtype; begin of a ParameterPart counts in that logical order.
//
// Forward: a block is gathered, the next ones (as the last pass had them) are under way meanwhile,
// and it is freed when the next one runs; the last one stays for the backward pass. Backward: a
// block is gathered when the gradient of its result arrives, the one before it is under way, and
// when its backward pass is done it is freed and its gradients start on their way. No more than
// 1 + prefetch_blocks blocks are gathered at a time, and at most two sums are under way. Every rank
// runs the same blocks in the same order; blocks are not nested. Blocks that hold no parameter of a
// phase only compute.
//
// Micro-batches without sync: fsdp and hsdp sum every one into the float32 gradient of their part
// (so that no rank holds whole gradients), zero1 lets them add up and sums once. A parameter that
// had no gradient on any rank in a step has none in its part, so that the optimizer leaves it; if
// it had one on some ranks it counts as zero on the others.
//
// Graphs are differentiated once, and not after the strategy is gone.

#include <unordered_map>

#include "vgen/dist/strategy.h"

namespace vgen::dist {

namespace detail {
class Unit;
struct Reduction;
struct RowBytes;
struct Spread;
}  // namespace detail

/// Of this rank, in bytes.
struct MemoryUse {
  int64_t parameters = 0;       ///< weights that stay: the parts; zero1: the whole
  int64_t gradients = 0;        ///< of the parts, at most
  int64_t gathered_peak = 0;    ///< weights gathered for a while and gradients under way, at most
  int64_t gathered_blocks = 0;  ///< a number: of those in a pass at the same time, at most
};

class Sharded : public Strategy, private BlockRunner {
 public:
  struct Options {
    bool is_resident = false;  ///< zero1
    int64_t shard_ranks = 0;   ///< ranks that share a copy; divides the world size
    int64_t copy = 0;          ///< the number of this rank's copy
    c10::ScalarType param_dtype = c10::kFloat;
    c10::ScalarType reduce_dtype = c10::kFloat;
    int64_t prefetch_blocks = 1;
    bool is_checkpointed = false;
  };
  Sharded(const Options& options, std::unique_ptr<Group> group);
  ~Sharded() override;

  void attach(const std::vector<PhaseModel>& phases,
              const std::vector<at::Tensor>& buffers) override;
  std::vector<ParameterPart> parts(size_t phase) override;
  BlockRunner* runner() override { return this; }
  void begin() override;
  void end() override;
  void backward(size_t phase, const at::Tensor& loss, bool sync_gradients) override;
  at::Tensor clip_grad_norm(size_t phase, double max_norm) override;
  void take_over(size_t phase) override;
  void updated(size_t phase) override;
  /// Values are those of the parts, in blocks rounded to the compute dtype.
  std::shared_ptr<void> whole() override;
  bool is_sharded() const override { return true; }
  Traffic traffic() const override;

  MemoryUse memory_use() const;

 private:
  struct Block;
  struct Phase;
  struct Visit;

  at::Tensor run(const torch::nn::Module& block, const std::vector<at::Tensor>& inputs,
                 const BlockForward& forward) override;
  Phase make_phase(size_t index, const PhaseModel& model);
  void enter(Block& block);
  void gather(std::vector<Block*> wanted);
  void open(const Visit& visit);
  void close(const Visit& visit);
  bool is_summing(const Block& block) const;
  void start_sum(Block& block);
  void finish_oldest_scatter();
  void finish_backward(Phase& phase);
  void finish_gradients(Phase& phase);
  void forget_pass();
  void free_blocks();
  template <class Function>
  void for_each_block(const Function& function) const;

  Options options_;
  std::unique_ptr<Group> copy_part_, peer_part_;  // of the world
  std::unique_ptr<detail::Spread> spread_, float32_spread_;
  std::unique_ptr<detail::RowBytes> row_bytes_;
  std::vector<Phase> phases_;
  std::unordered_map<const torch::nn::Module*, Block*> blocks_;
  bool has_begun_ = false;
  Block* current_ = nullptr;           // the one that ran last
  std::vector<Block*> window_;         // gathered for the pass under way: that one and those ahead
  std::shared_ptr<Visit> last_visit_;  // of the forward pass under way
  // The backward pass under way.
  Phase* differentiated_ = nullptr;
  bool is_last_micro_batch_ = false;
  std::vector<detail::Reduction> scatters_, sums_;  // the oldest first
  int64_t gradient_bytes_ = 0, gathered_blocks_ = 0;
};

/// For zero1, fsdp and hsdp. compute_dtype: what param_dtype `auto` is. hsdp's groups are filled
/// host by host: `host` is the same text on the ranks of a host alone, ranks_per_host how many
/// these are (0: unknown). Collective. Throws Error(kInvalidArgument) where hsdp's ranks do not
/// fit.
std::unique_ptr<Strategy> make_sharded(const ParallelConfig& config, std::unique_ptr<Group> group,
                                       c10::ScalarType compute_dtype, int64_t ranks_per_host,
                                       const std::string& host = host_id());

}  // namespace vgen::dist
