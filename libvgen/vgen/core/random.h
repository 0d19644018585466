#pragma once
// The seed scheme. Every random decision of vgen is a function of
//     (root seed, purpose, epoch or step, global sample index)
// and of nothing else: never of worker, thread, rank or batch. So data order, augmentation and
// sampled images are the same for any number of workers and ranks. The generator is Philox4x32-10
// (Salmon et al., SC 2011): counter-based, so any element of any stream is reached in O(1).

#include <array>
#include <cstdint>
#include <vector>

namespace vgen {

/// What a random number is for. The values are part of the scheme: never renumber.
enum class Purpose : uint32_t {
  kDataOrder = 1,     ///< permutation of an epoch
  kAugment = 2,       ///< crop, flip of one sample
  kInit = 3,          ///< weight initialisation
  kDropout = 4,       ///< seeds of LibTorch's generators, per step and rank
  kSampling = 5,      ///< tokens of a generated image
  kLabelDropout = 6,  ///< classifier-free guidance dropout
  kSynth = 7,         ///< procedural data
  kSmoothing = 8,     ///< mixtures of codes in VAR (more_smooth)
  kTest = 1000,
};

/// One stream of random numbers: a value type, cheap to make, not shared between threads.
class Rng {
 public:
  /// `major` is the epoch or step, `index` the global sample index.
  Rng(uint64_t seed, Purpose purpose, uint64_t major = 0, uint64_t index = 0);

  uint32_t next_u32();
  uint64_t next_u64();
  /// Uniform in [0, 1), 53 bits.
  double uniform();
  /// Uniform integer in [0, bound), without bias. bound > 0.
  uint64_t below(uint64_t bound);
  /// Uniform integer in [low, high], both included.
  int64_t between(int64_t low, int64_t high);
  /// Standard normal (Box-Muller).
  double normal();
  /// A seed for another generator (LibTorch's), never 0.
  uint64_t derive_seed();

 private:
  void refill();

  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 4> counter_;
  std::array<uint32_t, 4> block_{};
  int used_ = 4;
};

/// One Philox4x32-10 block. Exposed for its known-answer test.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// Uniform permutation of 0..size-1 (Fisher-Yates).
std::vector<int64_t> random_permutation(int64_t size, Rng rng);

}  // namespace vgen
