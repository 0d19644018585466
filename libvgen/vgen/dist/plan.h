#pragma once
// What a strategy will need, on paper: bytes per rank, what the ranks send each other, and how long
// a step takes, from the sizes of the parameters alone. Follows Sharded, the reducer of ddp and
// the trainer with Adam line by line. Pure arithmetic: may be called from several threads.

#include <cstdint>
#include <string>
#include <vector>

#include "vgen/dist/plan_gpu.h"

namespace vgen::dist {

/// The parameters of one optimizer, as PhaseModel has them.
struct PhaseSizes {
  std::vector<std::vector<int64_t>> blocks;  ///< elements of each parameter, block by block
  std::vector<int64_t> root;                 ///< of those that lie outside of blocks
  bool is_float32 = false;                   ///< as PhaseModel has it
  bool is_averaged = false;                  ///< EMA keeps their averages

  int64_t num_elements() const;
};

/// How a run is spread, resolved: ParallelConfig without its 0 and auto.
struct PlanSetup {
  std::string strategy = "none";   ///< none, ddp, zero1, fsdp, hsdp
  int64_t ranks = 1;               ///< none: 1
  int64_t shard_ranks = 1;         ///< hsdp: ranks that share a copy; divides `ranks`
  int64_t param_bytes = 4;         ///< fsdp, hsdp: of an element of a block that is gathered
  int64_t reduce_bytes = 4;        ///< zero1, fsdp, hsdp: of an element that is summed
  int64_t prefetch_blocks = 1;     ///< fsdp, hsdp
  int64_t grad_accum_steps = 1;    ///< micro-batches of a step
  double bucket_bytes = 25 << 20;  ///< ddp

  bool is_sharded() const;     ///< zero1, fsdp, hsdp among several ranks
  bool is_gathering() const;   ///< fsdp, hsdp among several ranks
  int64_t copy_ranks() const;  ///< that have one copy of the state together
};

/// Of one rank, in bytes, each at its most; activations are not among them.
struct PlannedMemory {
  int64_t parameters = 0;  ///< that stay, float32
  int64_t gradients = 0;   ///< of what this rank updates, float32
  int64_t optimizer = 0;   ///< both averages of Adam, float32
  int64_t averages = 0;    ///< EMA, float32
  /// Weights that are gathered for a while, and gradients under way to their sum: as
  /// MemoryUse::gathered_peak.
  int64_t gathered = 0;
  /// Gradients before they are summed: ddp's buckets, which are a second copy of all; zero1 the
  /// whole of a phase where micro-batches add up; else those of the largest block and of what lies
  /// outside of blocks.
  int64_t buffers = 0;
};
PlannedMemory plan_memory(const std::vector<PhaseSizes>& phases, const PlanSetup& setup);

/// What of gradients, gathered rows and buffers a rank has at the moments of the last backward pass
/// of a phase, in bytes. What comes does so as activations go, so the sum of all peaks would be too
/// much.
struct PassMemory {
  int64_t begin = 0;            ///< behind the blocks
  std::vector<int64_t> blocks;  ///< while each of PhaseSizes::blocks computes
  int64_t end = 0;              ///< before the first block
};
/// Of each phase.
std::vector<PassMemory> plan_passes(const std::vector<PhaseSizes>& phases, const PlanSetup& setup);

/// Collectives of one step that are of the same kind and have the same time to hide in.
struct Transfer {
  enum class Kind { kGather, kScatter, kReduce };  ///< all-gather, reduce-scatter, all-reduce
  /// kForward, kBackward: while such a pass computes; kAlone: the ranks stand still for it.
  enum class Time { kForward, kBackward, kAlone };
  Kind kind = Kind::kReduce;
  Time time = Time::kAlone;
  bool is_over_peers =
      false;          ///< hsdp: between ranks with the same part, not among those of a copy
  int64_t bytes = 0;  ///< whole rows: what a gather makes, a sum takes

  int64_t num_members(const PlanSetup& setup) const;  ///< of the group
  /// What a rank sends, as rings do: bytes * (n - 1) / n, twice that for an all-reduce.
  double sent_bytes(const PlanSetup& setup) const;
  /// What Strategy::traffic() counts: the bytes of the tensors that a rank gives.
  double given_bytes(const PlanSetup& setup) const;
};
/// Single numbers (norms, losses) and the first broadcast are left out.
std::vector<Transfer> plan_transfers(const std::vector<PhaseSizes>& phases, const PlanSetup& setup);

/// What a rank computes in a step, all micro-batches together.
struct ComputeLoad {
  double forward_flops = 0;
  double backward_flops = 0;
  double update_bytes = 0;      ///< that the optimizer and EMA read and write
  double flops_per_second = 1;  ///< that the model reaches: the peak times its share in use
};

/// Seconds of one step.
struct PlannedTime {
  double compute = 0;        ///< forward and backward passes
  double update = 0;         ///< optimizer and EMA, at the speed of the memory
  double communication = 0;  ///< all transfers, hidden or not
  double exposed = 0;        ///< of it what the ranks stand still for

  double step() const { return compute + update + exposed; }
};

/// Share of a link's data-sheet speed that a collective reaches.
inline constexpr double kLinkEfficiency = 0.8;

/// Transfers cost what a rank sends over the speed of their slowest link (no latency): within a
/// node gpu.intra_gb_s, among nodes what the network cards of the group's members in a node have
/// together, at most gpu.intra_gb_s. Those of a pass are hidden behind its computing as far as it
/// lasts; ddp and zero1 sum in the last micro-batch alone.
PlannedTime plan_time(const std::vector<Transfer>& transfers, const PlanSetup& setup,
                      const ComputeLoad& load, const Gpu& gpu, int64_t gpus_per_node);

}  // namespace vgen::dist
