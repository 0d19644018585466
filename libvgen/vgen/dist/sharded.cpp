#include "vgen/dist/sharded.h"

#include <torch/torch.h>

#include <algorithm>

#include "vgen/core/error.h"
#include "vgen/dist/activation_checkpoint.h"
#include "vgen/dist/detail/after_backward.h"
#include "vgen/dist/detail/stream_waits.h"
#include "vgen/dist/detail/unit.h"

namespace vgen::dist {

using detail::Unit;

namespace {

constexpr size_t kScattersUnderWay = 2;

c10::ScalarType dtype_of(const std::string& name) {
  if (name == "bf16") return c10::kBFloat16;
  return name == "fp16" ? c10::kHalf : c10::kFloat;
}

int64_t checked_shard_ranks(const ParallelConfig& config, int64_t world_size,
                            int64_t ranks_per_host) {
  const bool is_given = config.shard_ranks > 0;
  const int64_t ranks = is_given ? config.shard_ranks : ranks_per_host;
  require(ranks > 0, ErrorCode::kInvalidArgument,
          "parallel.shard_ranks is 0, as many ranks as a host has, but the launcher does not say "
          "how many that are; set it to a divisor of the ",
          world_size, " ranks");
  if (world_size % ranks == 0) return ranks;
  std::vector<std::string> divisors;
  for (int64_t i = 1; i <= world_size; ++i) {
    if (world_size % i == 0) divisors.push_back(str_cat(i));
  }
  throw_error(ErrorCode::kInvalidArgument, "parallel.shard_ranks is ", ranks,
              is_given ? "" : " (the ranks of this host)", ", but ", world_size,
              " ranks do not divide into groups of ", ranks, "; set it to one of ",
              join(divisors, ", "));
}

// Ranks in the order of their hosts, these in the order of their first ranks, fill one copy after
// the other.
int64_t copy_of_rank(size_t rank, int64_t shard_ranks, const std::vector<std::string>& hosts) {
  const auto place = [&hosts](size_t i) {
    return std::pair(std::ranges::find(hosts, hosts[i]) - hosts.begin(), i);
  };
  const auto own = place(rank);
  int64_t num_before = 0;
  for (size_t i = 0; i < hosts.size(); ++i) num_before += place(i) < own ? 1 : 0;
  return num_before / shard_ranks;
}

}  // namespace

struct Sharded::Block {
  Unit unit;
  size_t phase = 0;
  bool is_root = false;    ///< what lies outside of blocks
  Block* next = nullptr;   ///< that ran after this one the last time
  int64_t visits = 0;      ///< forward passes whose backward pass is to come
  bool is_summed = false;  ///< in the backward pass under way
};

/// The blocks of a phase in the order of the model, then its root, if it has one.
struct Sharded::Phase {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<ParameterPart> parts;
  bool has_gradients = false;  ///< of a finished step
};

/// One forward pass of a block.
struct Sharded::Visit {
  Block* block = nullptr;
  std::shared_ptr<Visit> before;
};

Sharded::Sharded(const Options& options, std::unique_ptr<Group> all)
    : Strategy(std::move(all)),
      options_(options),
      spread_(std::make_unique<detail::Spread>()),
      row_bytes_(std::make_unique<detail::RowBytes>()) {
  *spread_ = {.world = &group(),
              .copy = &group(),
              .is_resident = options.is_resident,
              .param_dtype = options.param_dtype,
              .reduce_dtype = options.reduce_dtype};
  if (options.shard_ranks == world_size()) {
    peer_part_ = Group::alone();
  } else {
    copy_part_ = group().split(options.copy);
    peer_part_ = group().split(copy_part_->rank());
    spread_->copy = copy_part_.get();
  }
  spread_->peers = peer_part_.get();
  float32_spread_ = std::make_unique<detail::Spread>(*spread_);
  float32_spread_->param_dtype = c10::kFloat;
}

Sharded::~Sharded() = default;

void Sharded::attach(const std::vector<PhaseModel>& phases,
                     const std::vector<at::Tensor>& buffers) {
  time_waits(phases);
  spread_->waits = float32_spread_->waits = stream_waits();
  for (const PhaseModel& model : phases) phases_.push_back(make_phase(phases_.size(), model));
  const at::NoGradGuard no_grad;
  for (const at::Tensor& buffer : buffers) group().broadcast(buffer);
}

Sharded::Phase Sharded::make_phase(size_t index, const PhaseModel& model) {
  std::unordered_map<const c10::TensorImpl*, size_t> place_of;
  for (size_t i = 0; i < model.parameters.size(); ++i) {
    place_of.emplace(model.parameters[i].unsafeGetTensorImpl(), i);
  }
  TORCH_INTERNAL_ASSERT(place_of.size() == model.parameters.size());
  const size_t root = model.blocks.size();
  std::vector<size_t> block_of(model.parameters.size(), root);
  for (size_t b = 0; b < root; ++b) {
    for (const at::Tensor& parameter : model.blocks[b]->parameters()) {
      const auto found = place_of.find(parameter.unsafeGetTensorImpl());
      if (found != place_of.end() && block_of[found->second] == root) block_of[found->second] = b;
    }
  }

  Phase phase;
  phase.parts.resize(model.parameters.size());
  for (size_t b = 0; b <= root; ++b) {
    std::vector<std::string> names;
    std::vector<at::Tensor> parameters;
    std::vector<size_t> places;
    for (size_t i = 0; i < block_of.size(); ++i) {
      if (block_of[i] != b) continue;
      names.push_back(model.names[i]);
      parameters.push_back(model.parameters[i]);
      places.push_back(i);
    }
    if (places.empty()) continue;
    const bool is_float32 = b == root || model.is_float32;
    const detail::Spread& spread = is_float32 ? *float32_spread_ : *spread_;
    phase.blocks.push_back(
        std::unique_ptr<Block>(new Block{.unit = Unit(spread, *row_bytes_, names, parameters),
                                         .phase = index,
                                         .is_root = b == root}));
    const Unit& unit = phase.blocks.back()->unit;
    for (size_t i = 0; i < places.size(); ++i) phase.parts[places[i]] = unit.parts()[i];
    if (b < root) blocks_[model.blocks[b].get()] = phase.blocks.back().get();
  }
  return phase;
}

Traffic Sharded::traffic() const {
  Traffic sum = Strategy::traffic();
  for (const Group* part : {copy_part_.get(), peer_part_.get()}) {
    if (part == nullptr) continue;
    sum.bytes += part->traffic().bytes;
    sum.wait_seconds += part->traffic().wait_seconds;
  }
  return sum;
}

std::vector<ParameterPart> Sharded::parts(size_t phase) { return phases_[phase].parts; }

template <class Function>
void Sharded::for_each_block(const Function& function) const {
  for (const Phase& phase : phases_) {
    for (const auto& block : phase.blocks) function(*block);
  }
}

void Sharded::begin() {
  forget_pass();
  for_each_block([&](Block& block) {
    if (!block.is_root) return;
    if (!has_begun_) block.unit.pin();
    block.unit.start_gather();
  });
  for_each_block([](Block& block) {
    if (block.is_root) block.unit.wait();
  });
  has_begun_ = true;
}

void Sharded::end() {
  free_blocks();
  if (!has_begun_) return;
  for_each_block([](Block& block) {
    if (block.is_root) block.unit.unpin();
  });
  has_begun_ = false;
}

void Sharded::free_blocks() {
  forget_pass();
  for_each_block([](Block& block) {
    block.unit.free();
    block.visits = 0;
  });
}

// What runs next is no continuation.
void Sharded::forget_pass() {
  for (Block* block : window_) block->unit.free();
  window_.clear();
  current_ = nullptr;
  last_visit_.reset();
}

// --- forward ---

at::Tensor Sharded::run(const torch::nn::Module& module, const std::vector<at::Tensor>& inputs,
                        const BlockForward& forward) {
  const auto compute = [&](const std::vector<at::Tensor>& given) {
    return options_.is_checkpointed ? checkpointed(given, forward, module.parameters())
                                    : forward(given);
  };
  const auto found = blocks_.find(&module);
  if (found == blocks_.end()) return compute(inputs);
  Block& block = *found->second;
  enter(block);
  if (!at::GradMode::is_enabled()) return forward(inputs);
  const auto visit = std::make_shared<Visit>(Visit{&block, last_visit_});
  at::Tensor output = compute(detail::after_backward(inputs, [this, visit] { close(*visit); }));
  if (!output.requires_grad()) return output;
  output.register_hook([this, visit](const at::Tensor& /*gradient*/) { open(*visit); });
  last_visit_ = visit;
  ++block.visits;
  return output;
}

void Sharded::enter(Block& block) {
  if (current_ != nullptr && current_ != &block) current_->next = &block;
  current_ = &block;
  std::vector<Block*> wanted{&block};
  Block* ahead = block.next;
  for (int64_t i = 0; i < options_.prefetch_blocks && ahead != nullptr; ++i) {
    wanted.push_back(ahead);
    ahead = ahead->next;
  }
  gather(std::move(wanted));
}

// The first of `wanted` is waited for. What was wanted before and is not now goes first, also what
// was gathered ahead in vain: no more than these are ever there.
void Sharded::gather(std::vector<Block*> wanted) {
  for (Block* block : window_) {
    if (std::ranges::find(wanted, block) == wanted.end()) block->unit.free();
  }
  window_ = std::move(wanted);
  for (Block* block : window_) block->unit.start_gather();
  int64_t num_gathered = 0;
  for_each_block([&](const Block& block) {
    num_gathered += !block.is_root && block.unit.is_gathered() ? 1 : 0;
  });
  gathered_blocks_ = std::max(gathered_blocks_, num_gathered);
  window_.front()->unit.wait();
}

// --- backward ---

void Sharded::backward(size_t index, const at::Tensor& loss, bool sync_gradients) {
  Phase& phase = phases_[index];
  if (phase.has_gradients) {
    for (const auto& block : phase.blocks) block->unit.drop_gradients();
    phase.has_gradients = false;
  }
  differentiated_ = &phase;
  is_last_micro_batch_ = sync_gradients;
  loss.backward();
  finish_backward(phase);
  differentiated_ = nullptr;
}

// The gradient of a block's result is there.
void Sharded::open(const Visit& visit) {
  std::vector<Block*> wanted{visit.block};
  const Visit* ahead = visit.before.get();
  for (int64_t i = 0; i < options_.prefetch_blocks && ahead != nullptr; ++i) {
    wanted.push_back(ahead->block);
    ahead = ahead->before.get();
  }
  gather(std::move(wanted));
}

// All gradients of one forward pass of a block are there.
void Sharded::close(const Visit& visit) {
  Block& block = *visit.block;
  // Not in a backward pass of the task's own, which may be one of several through this block.
  if (differentiated_ != nullptr && --block.visits == 0 && is_summing(block)) start_sum(block);
  block.unit.free();
}

bool Sharded::is_summing(const Block& block) const {
  return &phases_[block.phase] == differentiated_ &&
         (is_last_micro_batch_ || !options_.is_resident);
}

void Sharded::start_sum(Block& block) {
  block.is_summed = true;
  while (scatters_.size() >= kScattersUnderWay) finish_oldest_scatter();
  scatters_.push_back(block.unit.start_scatter(is_last_micro_batch_));
}

void Sharded::finish_oldest_scatter() {
  detail::Reduction oldest = std::move(scatters_.front());
  scatters_.erase(scatters_.begin());
  Unit& unit = *oldest.unit;
  const bool is_last = oldest.is_last;
  unit.finish_scatter(std::move(oldest));
  if (is_last) sums_.push_back(unit.start_sum_over_peers());
}

void Sharded::finish_backward(Phase& phase) {
  for (const auto& block : phase.blocks) {
    // Of a block whose gradients came late (its inputs want none, or another block uses one of its
    // parameters), or not at all: other ranks may have some.
    const bool is_left = !block->is_summed || block->unit.has_gradients();
    if (is_left && is_summing(*block)) start_sum(*block);
    block->is_summed = false;
  }
  free_blocks();
  if (is_last_micro_batch_) finish_gradients(phase);
}

void Sharded::finish_gradients(Phase& phase) {
  std::vector<int32_t> is_used;
  for (const auto& block : phase.blocks) {
    is_used.insert(is_used.end(), block->unit.is_used().begin(), block->unit.is_used().end());
  }
  const at::Tensor ranks_with = at::tensor(is_used, at::kInt);
  Pending agreement = group().start_all_reduce_sum(ranks_with);
  while (!scatters_.empty()) finish_oldest_scatter();
  for (detail::Reduction& sum : sums_) {
    Unit& unit = *sum.unit;
    unit.finish_sum_over_peers(std::move(sum));
  }
  sums_.clear();
  detail::timed_wait(agreement, stream_waits());
  const auto* next = ranks_with.const_data_ptr<int32_t>();
  for (const auto& block : phase.blocks) {
    block->unit.publish_gradients(next);
    next += block->unit.parameters().size();
  }
  phase.has_gradients = true;
  int64_t bytes = 0;
  for (const Phase& each : phases_) {
    for (const auto& block : each.blocks) bytes += block->unit.gradient_bytes();
  }
  gradient_bytes_ = std::max(gradient_bytes_, bytes);
}

// --- the optimizer's side ---

at::Tensor Sharded::clip_grad_norm(size_t index, double max_norm) {
  const at::NoGradGuard no_grad;
  const Phase& phase = phases_[index];
  std::vector<at::Tensor> gradients;
  for (const auto& block : phase.blocks) {
    if (block->unit.gradient().defined()) gradients.push_back(block->unit.gradient());
  }
  const at::Device device = phase.blocks[0]->unit.parameters()[0].device();
  const at::Tensor square = gradients.empty()
                                ? at::zeros({}, at::TensorOptions(device))
                                : at::stack(at::_foreach_norm(gradients)).square().sum();
  Pending sum = spread_->copy->start_all_reduce_sum(square);
  detail::timed_wait(sum, stream_waits());
  at::Tensor norm = square.sqrt();
  if (max_norm > 0 && !gradients.empty()) {
    at::_foreach_mul_(gradients, at::clamp_max(max_norm / (norm + 1e-6), 1.0));
  }
  return norm;
}

void Sharded::take_over(size_t index) {
  for (const auto& block : phases_[index].blocks) {
    if (block->is_root) block->unit.take_over();
  }
}

void Sharded::updated(size_t index) {
  for (const auto& block : phases_[index].blocks) {
    block->unit.drop_gradients();
    block->unit.mark_changed();
  }
  // Parts that lie in the row are free to be written again only when its gather has ended.
  if (options_.is_resident) {
    for (const auto& block : phases_[index].blocks) block->unit.wait();
  }
  phases_[index].has_gradients = false;
}

std::shared_ptr<void> Sharded::whole() {
  for_each_block([](Block& block) {
    block.unit.pin();
    block.unit.start_gather();
  });
  for_each_block([](Block& block) { block.unit.wait(); });
  return {this, [this](void*) { for_each_block([](Block& block) { block.unit.unpin(); }); }};
}

MemoryUse Sharded::memory_use() const {
  MemoryUse use{.gradients = gradient_bytes_,
                .gathered_peak = row_bytes_->peak,
                .gathered_blocks = gathered_blocks_};
  for_each_block([&](const Block& block) { use.parameters += block.unit.weight_bytes(); });
  return use;
}

std::unique_ptr<Strategy> make_sharded(const ParallelConfig& config, std::unique_ptr<Group> group,
                                       c10::ScalarType compute_dtype, int64_t ranks_per_host,
                                       const std::string& host) {
  Sharded::Options options{.shard_ranks = group->size(),
                           .reduce_dtype = dtype_of(config.reduce_dtype),
                           .prefetch_blocks = config.prefetch_blocks,
                           .is_checkpointed = config.activation_checkpointing};
  if (config.strategy == "hsdp") {
    for (const std::string& ranks : group->all_gather_text(str_cat(ranks_per_host))) {
      require(config.shard_ranks > 0 || ranks == str_cat(ranks_per_host),
              ErrorCode::kInvalidArgument, "one host has ", ranks_per_host, " ranks, another ",
              ranks, "; set parallel.shard_ranks to a divisor of the ", group->size(), " ranks");
    }
    options.shard_ranks = checked_shard_ranks(config, group->size(), ranks_per_host);
    options.copy = copy_of_rank(static_cast<size_t>(group->rank()), options.shard_ranks,
                                group->all_gather_text(host));
  }
  options.is_resident = config.strategy == "zero1";
  if (!options.is_resident) {
    options.param_dtype =
        config.param_dtype == "auto" ? compute_dtype : dtype_of(config.param_dtype);
  }
  return std::make_unique<Sharded>(options, std::move(group));
}

}  // namespace vgen::dist
