#include "vgen/data/sampler.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <fstream>
#include <set>
#include <sstream>

#include "support/support.h"
#include "vgen/core/random.h"

namespace vgen::data {
namespace {

using Order = std::vector<int64_t>;

Order order(const SamplerConfig& config, int64_t epoch = 0) { return Sampler(config).order(epoch); }

}  // namespace

// The expected lists are those of torch.utils.data.DistributedSampler(range(n), world, rank,
// shuffle=False, drop_last=...) of torch 2.11.
TEST_CASE("sampler: shards as DistributedSampler does", "[data]") {
  SamplerConfig config{.size = 10, .shuffle = false, .world_size = 4};
  const Order padded[] = {{0, 4, 8}, {1, 5, 9}, {2, 6, 0}, {3, 7, 1}};
  const Order dropped[] = {{0, 4}, {1, 5}, {2, 6}, {3, 7}};
  const Order kept[] = {{0, 4, 8}, {1, 5, 9}, {2, 6}, {3, 7}};
  for (config.rank = 0; config.rank < 4; ++config.rank) {
    config.tail = ShardTail::kPad;
    CHECK(order(config) == padded[config.rank]);
    config.tail = ShardTail::kDrop;
    CHECK(order(config) == dropped[config.rank]);
    config.tail = ShardTail::kKeep;
    CHECK(order(config) == kept[config.rank]);
  }
}

TEST_CASE("sampler: every case of DistributedSampler's golden lists", "[data][golden]") {
  std::ifstream cases(test::golden("sampler/cases.txt"));
  std::string line;
  int count = 0;
  while (std::getline(cases, line)) {
    INFO(line);
    std::istringstream words(line);
    SamplerConfig config{.shuffle = false};
    std::string tail;
    words >> config.size >> config.world_size >> config.rank >> tail;
    config.tail = tail == "pad" ? ShardTail::kPad : ShardTail::kDrop;
    Order expected;
    for (int64_t index = 0; words >> index;) expected.push_back(index);
    CHECK(order(config) == expected);
    ++count;
  }
  CHECK(count == 255);
}

TEST_CASE("sampler: padding goes round a dataset that is smaller than the ranks", "[data]") {
  SamplerConfig config{.size = 3, .shuffle = false, .world_size = 8};
  const Order all = {0, 1, 2, 0, 1, 2, 0, 1};
  for (config.rank = 0; config.rank < 8; ++config.rank) {
    CHECK(order(config) == Order{all[static_cast<size_t>(config.rank)]});
  }
}

TEST_CASE("sampler: ranks together see the permutation of the epoch, once each", "[data]") {
  for (const int64_t world : {1, 3, 7}) {
    Order together(101);
    for (int64_t rank = 0; rank < world; ++rank) {
      const Order mine = order(
          {.size = 101, .seed = 9, .rank = rank, .world_size = world, .tail = ShardTail::kKeep}, 2);
      for (size_t i = 0; i < mine.size(); ++i) {
        together[static_cast<size_t>(rank + static_cast<int64_t>(i) * world)] = mine[i];
      }
    }
    CHECK(together == random_permutation(101, Rng(9, Purpose::kDataOrder, 2)));
    CHECK(std::set<int64_t>(together.begin(), together.end()).size() == 101);
  }
}

TEST_CASE("sampler: another epoch or seed is another order", "[data]") {
  const SamplerConfig config{.size = 50, .seed = 1};
  CHECK(order(config, 0) == order(config, 0));
  CHECK(order(config, 0) != order(config, 1));
  CHECK(order(config, 0) != order({.size = 50, .seed = 2}, 0));
}

TEST_CASE("sampler: impossible shares are told", "[data]") {
  CHECK_THAT(test::error_of([] { Sampler({.size = 4, .rank = 2, .world_size = 2}); }),
             Catch::Contains("rank 2 of 2 ranks: expected 0 <= rank < ranks"));
  CHECK_THAT(test::error_of([] { Sampler({.size = 0}); }), Catch::Contains("the dataset is empty"));
  CHECK_THAT(test::error_of([] {
               Sampler({.size = 3, .rank = 1, .world_size = 4, .tail = ShardTail::kDrop});
             }),
             Catch::Contains("rank 1 of 4 gets none of the 3 images"));
}

}  // namespace vgen::data
