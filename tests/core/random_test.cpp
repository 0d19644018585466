#include "vgen/core/random.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <set>

namespace vgen {

TEST_CASE("philox: known answers of the reference implementation", "[core]") {
  // Random123's kat_vectors, philox4x32 with 10 rounds.
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) ==
        std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) ==
        std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("rng: a stream is a function of seed, purpose, major and index", "[core]") {
  const auto first = [](uint64_t seed, Purpose purpose, uint64_t major, uint64_t index) {
    return Rng(seed, purpose, major, index).next_u64();
  };
  const uint64_t reference = first(1, Purpose::kAugment, 2, 3);
  CHECK(first(1, Purpose::kAugment, 2, 3) == reference);
  const std::set<uint64_t> all = {reference,
                                  first(2, Purpose::kAugment, 2, 3),
                                  first(1, Purpose::kDataOrder, 2, 3),
                                  first(1, Purpose::kAugment, 3, 3),
                                  first(1, Purpose::kAugment, 2, 4),
                                  first(1, Purpose::kAugment, 3, 2)};
  CHECK(all.size() == 6);
  // The scheme is a promise: seeds of published runs must go on meaning the same.
  CHECK(first(0, Purpose::kDataOrder, 0, 0) == 0x88d1dd27ae828266);
  CHECK(first(1, Purpose::kAugment, 2, 3) == 0x4dbce604d864faa7);
  CHECK(first(42, Purpose::kSampling, 7, 5) == 0xf18ea29c9d7929a2);
  CHECK(random_permutation(8, Rng(0, Purpose::kDataOrder)) ==
        std::vector<int64_t>{3, 7, 2, 1, 5, 4, 0, 6});
}

TEST_CASE("rng: values have the distribution they claim", "[core]") {
  Rng rng(7, Purpose::kTest);
  constexpr int kCount = 200000;
  double sum = 0, normal_sum = 0, normal_square_sum = 0;
  std::array<int, 6> histogram{};
  for (int i = 0; i < kCount; ++i) {
    const double u = rng.uniform();
    REQUIRE((u >= 0 && u < 1));
    sum += u;
    const double n = rng.normal();
    normal_sum += n;
    normal_square_sum += n * n;
    const int64_t die = rng.between(1, 6);
    REQUIRE((die >= 1 && die <= 6));
    ++histogram[static_cast<size_t>(die - 1)];
  }
  // Five standard errors of the mean each.
  CHECK(std::abs(sum / kCount - 0.5) < 5 * std::sqrt(1.0 / 12 / kCount));
  CHECK(std::abs(normal_sum / kCount) < 5 / std::sqrt(kCount));
  CHECK(std::abs(normal_square_sum / kCount - 1) < 5 * std::sqrt(2.0 / kCount));
  for (const int count : histogram) {
    CHECK(std::abs(count - kCount / 6.0) < 5 * std::sqrt(kCount * 5.0 / 36));
  }
}

TEST_CASE("random_permutation: each element once, another order per epoch", "[core]") {
  const auto first = random_permutation(1000, Rng(1, Purpose::kDataOrder, 0));
  const auto second = random_permutation(1000, Rng(1, Purpose::kDataOrder, 1));
  CHECK(first != second);
  CHECK(first == random_permutation(1000, Rng(1, Purpose::kDataOrder, 0)));
  auto sorted = first;
  std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 0; i < 1000; ++i) REQUIRE(sorted[static_cast<size_t>(i)] == i);
  CHECK(random_permutation(0, Rng(1, Purpose::kDataOrder)).empty());
}

}  // namespace vgen
