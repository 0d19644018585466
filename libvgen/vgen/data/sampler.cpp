#include "vgen/data/sampler.h"

#include "vgen/core/error.h"
#include "vgen/core/random.h"

namespace vgen::data {

Sampler::Sampler(const SamplerConfig& config) : config_(config) {
  require(config.world_size >= 1 && config.rank >= 0 && config.rank < config.world_size,
          ErrorCode::kInvalidArgument, "rank ", config.rank, " of ", config.world_size,
          " ranks: expected 0 <= rank < ranks");
  require(config.size >= 1, ErrorCode::kInvalidArgument, "the dataset is empty: nothing to sample");
  const int64_t whole = config.size / config.world_size, rest = config.size % config.world_size;
  switch (config.tail) {
    case ShardTail::kPad:
      samples_ = whole + (rest != 0);
      break;
    case ShardTail::kDrop:
      samples_ = whole;
      break;
    case ShardTail::kKeep:
      samples_ = whole + (config.rank < rest);
      break;
  }
  require(samples_ >= 1, ErrorCode::kInvalidArgument, "rank ", config.rank, " of ",
          config.world_size, " gets none of the ", config.size,
          " images: use fewer ranks, more images, or shard_tail: pad");
}

std::vector<int64_t> Sampler::order(int64_t epoch) const {
  std::vector<int64_t> all;
  if (config_.shuffle) {
    all = random_permutation(config_.size,
                             Rng(config_.seed, Purpose::kDataOrder, static_cast<uint64_t>(epoch)));
  }
  std::vector<int64_t> mine;
  mine.reserve(static_cast<size_t>(samples_));
  for (int64_t i = 0; i < samples_; ++i) {
    // Past the end the order goes on from its own beginning.
    const int64_t place = (config_.rank + i * config_.world_size) % config_.size;
    mine.push_back(config_.shuffle ? all[static_cast<size_t>(place)] : place);
  }
  return mine;
}

}  // namespace vgen::data
