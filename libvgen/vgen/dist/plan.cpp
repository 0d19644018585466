#include "vgen/dist/plan.h"

#include <algorithm>
#include <numeric>

#include "vgen/dist/detail/unit.h"

namespace vgen::dist {

namespace {

constexpr int64_t kFloatBytes = 4;

using Kind = Transfer::Kind;
using Time = Transfer::Time;

int64_t sum_of(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
}

/// A unit's row of numbers, as detail::Unit lays it out; in elements.
struct Row {
  int64_t elements = 0;  ///< of its parameters
  int64_t whole = 0;     ///< with what lies between them
  int64_t part = 0;      ///< of one rank
  int64_t own = 0;       ///< elements of parameters in a part, of the rank that has most
};

Row lay_out(const std::vector<int64_t>& sizes, int64_t ranks) {
  Row row;
  std::vector<int64_t> offsets;
  int64_t end = 0;
  for (const int64_t size : sizes) {
    offsets.push_back(end);
    end += detail::aligned(size);
    row.elements += size;
  }
  row.part = detail::part_size(end, ranks);
  row.whole = row.part * ranks;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const int64_t begin = rank * row.part;
    int64_t own = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const int64_t from = std::max(offsets[i], begin);
      const int64_t to = std::min(offsets[i] + sizes[i], begin + row.part);
      own += std::max<int64_t>(0, to - from);
    }
    row.own = std::max(row.own, own);
  }
  return row;
}

/// A phase as the ranks of a copy share it. A root without parameters is an empty row.
struct Rows {
  std::vector<Row> blocks;
  Row root;
  int64_t weight = kFloatBytes;  ///< bytes of an element of a block that is gathered

  Rows(const PhaseSizes& sizes, const PlanSetup& setup)
      : root(lay_out(sizes.root, setup.copy_ranks())) {
    if (setup.is_gathering() && !sizes.is_float32) weight = setup.param_bytes;
    for (const auto& block : sizes.blocks) {
      if (!block.empty()) blocks.push_back(lay_out(block, setup.copy_ranks()));
    }
  }
  int64_t sum(int64_t Row::*field) const {
    int64_t sum = root.*field;
    for (const Row& block : blocks) sum += block.*field;
    return sum;
  }
  int64_t largest_block(int64_t Row::*field) const {
    int64_t most = 0;
    for (const Row& block : blocks) most = std::max(most, block.*field);
    return most;
  }
};

/// Bytes of what lies outside of blocks, of all phases, while a pass runs.
int64_t gathered_roots(const std::vector<PhaseSizes>& phases, const PlanSetup& setup) {
  int64_t roots = 0;
  for (const PhaseSizes& phase : phases) {
    if (setup.is_gathering()) roots += kFloatBytes * Rows(phase, setup).root.whole;
  }
  return roots;
}

/// The most bytes of rows at a time in the passes of a phase: see sharded.h. `roots`: of all
/// phases, which stay gathered through a pass.
int64_t gathered_peak(const Rows& rows, int64_t roots, const PlanSetup& setup) {
  const int64_t weight = setup.is_gathering() ? rows.weight : 0;
  const auto count = static_cast<int64_t>(rows.blocks.size());
  const auto whole = [&](int64_t block) {
    return block >= 0 && block < count ? rows.blocks[static_cast<size_t>(block)].whole : 0;
  };
  int64_t peak = roots;
  for (int64_t block = 0; block < count; ++block) {
    int64_t forward = 0, backward = 0;
    for (int64_t ahead = 0; ahead <= setup.prefetch_blocks; ++ahead) {
      forward += weight * whole(block + ahead);
      backward += weight * whole(block - ahead);
    }
    // Two sums are under way at most: of this block and of the one that came before it.
    backward += setup.reduce_bytes * (whole(block) + whole(block + 1));
    peak = std::max({peak, roots + forward, roots + backward});
  }
  return std::max(peak, roots + setup.reduce_bytes * (rows.root.whole + whole(0)));
}

void add_whole(const PhaseSizes& phase, const PlanSetup& setup, PlannedMemory& memory) {
  const int64_t bytes = kFloatBytes * phase.num_elements();
  memory.parameters += bytes;
  memory.gradients = std::max(memory.gradients, bytes);
  memory.optimizer += 2 * bytes;
  if (phase.is_averaged) memory.averages += bytes;
  if (setup.ranks > 1) memory.buffers += bytes;
}

void add_sharded(const PhaseSizes& phase, int64_t roots, const PlanSetup& setup,
                 PlannedMemory& memory) {
  const Rows rows(phase, setup);
  const int64_t own = kFloatBytes * rows.sum(&Row::own);
  memory.parameters += kFloatBytes * rows.sum(setup.is_gathering() ? &Row::part : &Row::whole);
  memory.gradients = std::max(memory.gradients, kFloatBytes * rows.sum(&Row::part));
  memory.optimizer += 2 * own;
  if (phase.is_averaged) memory.averages += own;
  memory.gathered = std::max(memory.gathered, gathered_peak(rows, roots, setup));
  const bool adds_up = !setup.is_gathering() && setup.grad_accum_steps > 1;
  const int64_t waiting =
      adds_up ? kFloatBytes * rows.sum(&Row::elements)
              : kFloatBytes * rows.root.elements + rows.weight * rows.largest_block(&Row::elements);
  memory.buffers = std::max(memory.buffers, waiting);
}

/// `roots`: as for gathered_peak.
PassMemory sharded_pass(const PhaseSizes& phase, int64_t roots, const PlanSetup& setup) {
  const Rows rows(phase, setup);
  const int64_t gathered = setup.is_gathering() ? rows.weight : 0;
  const bool adds_up = setup.grad_accum_steps > 1;
  const int64_t all_parts = kFloatBytes * rows.sum(&Row::part);
  // Before the last pass: fsdp has the sums of its parts, zero1 the whole, which go as parts come.
  const bool has_whole = adds_up && !setup.is_gathering();
  const int64_t whole = has_whole ? kFloatBytes * rows.sum(&Row::elements) : 0;
  const bool has_parts = adds_up && setup.is_gathering();
  const int64_t outside = has_whole ? 0 : kFloatBytes * rows.root.elements;
  const auto row = [&](int64_t index) {
    const bool is_there = index >= 0 && index < static_cast<int64_t>(rows.blocks.size());
    return is_there ? rows.blocks[static_cast<size_t>(index)] : Row{};
  };

  PassMemory pass;
  pass.blocks.resize(phase.blocks.size());
  int64_t index = static_cast<int64_t>(rows.blocks.size()) - 1;  // of those with parameters
  pass.begin = roots + gathered * row(index).whole + whole + (has_parts ? all_parts : 0);
  int64_t parts = 0;  // of the blocks behind
  for (size_t block = phase.blocks.size(); block-- > 0;) {
    const bool has_row = !phase.blocks[block].empty();
    int64_t& bytes = pass.blocks[block];
    bytes = roots + whole + outside + (has_parts ? all_parts : has_whole ? 0 : parts);
    for (int64_t ahead = 0; ahead <= setup.prefetch_blocks; ++ahead) {
      bytes += gathered * row(index - ahead).whole;
    }
    // Under way: the older one is waited for when this block has its gradients.
    bytes += setup.reduce_bytes * (row(index + 1).whole + row(index + 2).whole);
    if (!has_row) continue;
    if (!has_whole) bytes += rows.weight * row(index).elements;
    parts += kFloatBytes * row(index).part;
    --index;
  }
  pass.end = roots + std::max(whole, all_parts + outside) +
             setup.reduce_bytes * (rows.root.whole + row(0).whole);
  return pass;
}

/// `buckets`: of all phases, which stay.
PassMemory whole_pass(const PhaseSizes& phase, int64_t buckets, const PlanSetup& setup) {
  const int64_t all = kFloatBytes * phase.num_elements();
  const bool adds_up = setup.grad_accum_steps > 1;
  PassMemory pass;
  pass.blocks.resize(phase.blocks.size());
  pass.begin = buckets + (adds_up ? all : 0);
  int64_t come = kFloatBytes * sum_of(phase.root);
  for (size_t block = phase.blocks.size(); block-- > 0;) {
    come += kFloatBytes * sum_of(phase.blocks[block]);
    pass.blocks[block] = buckets + (adds_up ? all : come);
  }
  pass.end = buckets + all;
  return pass;
}

class TransferList {
 public:
  explicit TransferList(const PlanSetup& setup) : setup_(setup) {}

  void add(Kind kind, Time time, int64_t bytes, bool is_over_peers = false) {
    if (bytes == 0) return;
    const Transfer added{
        .kind = kind, .time = time, .is_over_peers = is_over_peers, .bytes = bytes};
    if (added.num_members(setup_) == 1) return;
    for (Transfer& known : list) {
      const bool is_same = known.kind == kind && known.time == time;
      if (is_same && known.is_over_peers == is_over_peers) {
        known.bytes += bytes;
        return;
      }
    }
    list.push_back(added);
  }

  std::vector<Transfer> list;

 private:
  const PlanSetup& setup_;
};

void add_ddp(const PhaseSizes& phase, const PlanSetup& setup, TransferList& transfers) {
  const int64_t bytes = kFloatBytes * phase.num_elements();
  // The last bucket has nothing left to hide behind.
  const int64_t last = std::min(bytes, static_cast<int64_t>(setup.bucket_bytes));
  transfers.add(Kind::kReduce, Time::kBackward, bytes - last);
  transfers.add(Kind::kReduce, Time::kAlone, last);
}

/// The backward pass ends with the first block.
Time sum_time(size_t block) { return block == 0 ? Time::kAlone : Time::kBackward; }

void add_zero1(const Rows& rows, const PlanSetup& setup, TransferList& transfers) {
  for (size_t i = 0; i < rows.blocks.size(); ++i) {
    const int64_t whole = rows.blocks[i].whole;
    transfers.add(Kind::kScatter, sum_time(i), setup.reduce_bytes * whole);
    // Whatever the ranks do together next waits for it.
    transfers.add(Kind::kGather, Time::kAlone, kFloatBytes * whole);
  }
  transfers.add(Kind::kScatter, Time::kAlone, setup.reduce_bytes * rows.root.whole);
  transfers.add(Kind::kGather, Time::kAlone, kFloatBytes * rows.root.whole);
}

void add_fsdp(const Rows& rows, const PlanSetup& setup, TransferList& transfers) {
  const int64_t times = setup.grad_accum_steps;
  const bool is_ahead = setup.prefetch_blocks > 0;
  const auto hidden = [&](Time time) { return is_ahead ? time : Time::kAlone; };
  for (size_t i = 0; i < rows.blocks.size(); ++i) {
    const Row& block = rows.blocks[i];
    const int64_t gathered = times * rows.weight * block.whole;
    // Nothing computes before the first block is there.
    transfers.add(Kind::kGather, i == 0 ? Time::kAlone : hidden(Time::kForward), gathered);
    // The last block stays from the forward pass to the backward pass.
    const bool is_last = i + 1 == rows.blocks.size();
    if (!is_last) transfers.add(Kind::kGather, hidden(Time::kBackward), gathered);
    transfers.add(Kind::kScatter, sum_time(i), times * setup.reduce_bytes * block.whole);
    transfers.add(Kind::kReduce, sum_time(i), setup.reduce_bytes * block.part, true);
  }
  transfers.add(Kind::kScatter, Time::kAlone, times * setup.reduce_bytes * rows.root.whole);
  transfers.add(Kind::kReduce, Time::kAlone, setup.reduce_bytes * rows.root.part, true);
}

/// GB/s of one direction of a rank's links in such a transfer.
double link_gb_s(const Transfer& transfer, const PlanSetup& setup, const Gpu& gpu,
                 int64_t gpus_per_node) {
  // Ranks of a copy follow each other, those of peers are shard_ranks apart.
  const int64_t distance = transfer.is_over_peers ? setup.copy_ranks() : 1;
  const int64_t members = transfer.num_members(setup);
  const bool is_one_node = members * distance <= gpus_per_node;
  if (is_one_node) return gpu.intra_gb_s;
  const int64_t in_node = std::clamp<int64_t>(gpus_per_node / distance, 1, members);
  return std::min(gpu.intra_gb_s, static_cast<double>(in_node) * gpu.inter_gb_s);
}

}  // namespace

int64_t PhaseSizes::num_elements() const {
  int64_t count = sum_of(root);
  for (const auto& block : blocks) count += sum_of(block);
  return count;
}

bool PlanSetup::is_sharded() const { return ranks > 1 && (strategy == "zero1" || is_gathering()); }

bool PlanSetup::is_gathering() const {
  return ranks > 1 && (strategy == "fsdp" || strategy == "hsdp");
}

int64_t PlanSetup::copy_ranks() const { return strategy == "hsdp" ? shard_ranks : ranks; }

int64_t Transfer::num_members(const PlanSetup& setup) const {
  return is_over_peers ? setup.ranks / setup.copy_ranks() : setup.copy_ranks();
}

double Transfer::sent_bytes(const PlanSetup& setup) const {
  const auto members = static_cast<double>(num_members(setup));
  const double times = kind == Kind::kReduce ? 2 : 1;
  return times * static_cast<double>(bytes) * (members - 1) / members;
}

double Transfer::given_bytes(const PlanSetup& setup) const {
  const auto whole = static_cast<double>(bytes);
  return kind == Kind::kGather ? whole / static_cast<double>(num_members(setup)) : whole;
}

std::vector<PassMemory> plan_passes(const std::vector<PhaseSizes>& phases, const PlanSetup& setup) {
  const int64_t roots = gathered_roots(phases, setup);
  int64_t buckets = 0;
  for (const PhaseSizes& phase : phases) {
    if (setup.ranks > 1) buckets += kFloatBytes * phase.num_elements();
  }
  std::vector<PassMemory> passes;
  for (const PhaseSizes& phase : phases) {
    passes.push_back(setup.is_sharded() ? sharded_pass(phase, roots, setup)
                                        : whole_pass(phase, buckets, setup));
  }
  return passes;
}

PlannedMemory plan_memory(const std::vector<PhaseSizes>& phases, const PlanSetup& setup) {
  const int64_t roots = gathered_roots(phases, setup);
  PlannedMemory memory;
  for (const PhaseSizes& phase : phases) {
    if (setup.is_sharded()) {
      add_sharded(phase, roots, setup, memory);
    } else {
      add_whole(phase, setup, memory);
    }
  }
  return memory;
}

std::vector<Transfer> plan_transfers(const std::vector<PhaseSizes>& phases,
                                     const PlanSetup& setup) {
  TransferList transfers(setup);
  if (setup.ranks == 1) return {};
  int64_t roots = 0;
  for (const PhaseSizes& phase : phases) {
    const Rows rows(phase, setup);
    roots += kFloatBytes * rows.root.whole;
    if (setup.is_gathering()) {
      add_fsdp(rows, setup, transfers);
    } else if (setup.is_sharded()) {
      add_zero1(rows, setup, transfers);
    } else {
      add_ddp(phase, setup, transfers);
    }
  }
  if (setup.is_gathering()) {
    // Each micro-batch of each phase begins with the roots of all phases.
    const auto passes = static_cast<int64_t>(phases.size()) * setup.grad_accum_steps;
    transfers.add(Kind::kGather, Time::kAlone, passes * roots);
  }
  return transfers.list;
}

PlannedTime plan_time(const std::vector<Transfer>& transfers, const PlanSetup& setup,
                      const ComputeLoad& load, const Gpu& gpu, int64_t gpus_per_node) {
  const double forward = load.forward_flops / load.flops_per_second;
  const double backward = load.backward_flops / load.flops_per_second;
  PlannedTime time{.compute = forward + backward,
                   .update = load.update_bytes / (gpu.memory_gb_s * 1e9)};
  double in_forward = 0, in_backward = 0;
  for (const Transfer& transfer : transfers) {
    const double speed = kLinkEfficiency * 1e9 * link_gb_s(transfer, setup, gpu, gpus_per_node);
    const double seconds = transfer.sent_bytes(setup) / speed;
    time.communication += seconds;
    if (transfer.time == Time::kForward) in_forward += seconds;
    if (transfer.time == Time::kBackward) in_backward += seconds;
    if (transfer.time == Time::kAlone) time.exposed += seconds;
  }
  const double passes = setup.is_gathering() ? 1 : static_cast<double>(setup.grad_accum_steps);
  time.exposed += std::max(0.0, in_forward - forward / passes);
  time.exposed += std::max(0.0, in_backward - backward / passes);
  return time;
}

}  // namespace vgen::dist
