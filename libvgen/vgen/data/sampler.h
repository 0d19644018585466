#pragma once
// Which samples a rank sees, and in which order: the contract of PyTorch's DistributedSampler.
// The permutation of an epoch comes from Rng(seed, Purpose::kDataOrder, epoch), equal on all ranks;
// rank r takes its elements r, r + world_size, r + 2 world_size, ...

#include <cstdint>
#include <vector>

namespace vgen::data {

/// What happens when the samples do not divide by the ranks.
enum class ShardTail {
  kPad,   ///< the order is continued from its own beginning: every rank has ceil(size / ranks)
  kDrop,  ///< the last samples of the order are left out: every rank has floor(size / ranks)
  kKeep,  ///< some ranks have one sample less: exact passes for validation
};

struct SamplerConfig {
  int64_t size = 0;  ///< samples of the dataset
  bool shuffle = true;
  uint64_t seed = 0;
  int64_t rank = 0;
  int64_t world_size = 1;
  ShardTail tail = ShardTail::kPad;
};

/// Throws Error(kInvalidArgument) for an impossible rank or size, or a rank left without samples.
class Sampler {
 public:
  explicit Sampler(const SamplerConfig& config);

  int64_t samples_per_epoch() const { return samples_; }  ///< of this rank
  /// Sample indices of this rank in order, samples_per_epoch() of them.
  std::vector<int64_t> order(int64_t epoch) const;

 private:
  SamplerConfig config_;
  int64_t samples_ = 0;
};

}  // namespace vgen::data
