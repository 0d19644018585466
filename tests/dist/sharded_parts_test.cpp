// What each rank has of a sharded model, and when it is gathered.

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "dist/tower.h"
#include "support/ranks.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/dist/sharded.h"

using namespace vgen;
using Catch::Matchers::Contains;
using test::parallel;
using test::Shape;
using test::Tower;

TEST_CASE("sharded: parts cover each parameter once", "[dist]") {
  for (const std::string strategy : {"zero1", "fsdp"}) {
    std::vector<std::vector<dist::ParameterPart>> parts(3);
    torch::Tensor expected;
    test::run_ranks(3, [&](std::unique_ptr<dist::Group> group) {
      const int64_t rank = group->rank();
      const auto sharded = dist::make_sharded(parallel(strategy), std::move(group), c10::kFloat, 1);
      Tower tower(Shape(), static_cast<uint64_t>(rank));
      if (rank == 0) expected = tower->layers[1]->up->weight.detach().flatten().clone();
      sharded->attach({tower->model()}, {});
      parts[static_cast<size_t>(rank)] = sharded->parts(0);
      sharded->group().barrier();
    });
    std::vector<torch::Tensor> pieces;
    int64_t end = 0;
    for (const auto& of_rank : parts) {
      CHECK(of_rank.size() == 3 * 7 + 5);
      CHECK(of_rank.front().name == "extra");
      for (const auto& part : of_rank) {
        if (part.name != "layer1.up.weight") continue;
        CHECK(part.sizes == std::vector<int64_t>{5, 7});
        if (part.values.numel() == 0) continue;
        CHECK(part.begin == end);
        CHECK(part.values.scalar_type() == torch::kFloat);
        end += part.values.numel();
        pieces.push_back(part.values.detach());
      }
    }
    CHECK(end == 35);
    CHECK_THAT(torch::cat(pieces), test::AllClose(expected, test::kExact));
  }
}

TEST_CASE("sharded: a parameter that one rank uses counts as zero on the others", "[dist]") {
  std::vector<torch::Tensor> gradients(2), spare(2);
  test::run_ranks(2, [&](std::unique_ptr<dist::Group> group) {
    const auto rank = static_cast<size_t>(group->rank());
    const auto sharded = dist::make_sharded(parallel("fsdp"), std::move(group), c10::kFloat, 1);
    Tower tower(Shape(), 3);
    sharded->attach({tower->model()}, {});
    sharded->begin();
    const BlockRunnerGuard guard(sharded->runner());
    auto loss = tower->forward(torch::ones({2, 4})).sum();
    if (rank == 0) loss = loss + 3 * tower->extra.sum();
    sharded->backward(0, loss, /*sync_gradients=*/true);
    sharded->end();
    for (const auto& part : sharded->parts(0)) {
      if (part.name == "extra") gradients[rank] = part.values.grad();
      if (part.name == "layer0.spare") spare[rank] = part.values.grad();
    }
    sharded->group().barrier();
  });
  int64_t count = 0;
  for (const torch::Tensor& gradient : gradients) {
    if (!gradient.defined()) continue;
    count += gradient.numel();
    CHECK_THAT(gradient, test::AllClose(torch::full_like(gradient, 1.5), test::kExact));
  }
  CHECK(count == 5);
  CHECK_FALSE(spare[0].defined());
  CHECK_FALSE(spare[1].defined());
}

TEST_CASE("sharded: a weight counts as changed by an update, not by a gather", "[dist]") {
  for (const std::string strategy : {"zero1", "fsdp"}) {
    std::vector<int64_t> versions;
    std::vector<torch::Tensor> values(2);
    test::run_ranks(2, [&](std::unique_ptr<dist::Group> group) {
      const auto rank = static_cast<size_t>(group->rank());
      const auto sharded = dist::make_sharded(parallel(strategy), std::move(group), c10::kFloat, 1);
      Tower tower(Shape(), 3);
      sharded->attach({tower->model()}, {});
      const torch::Tensor& weight = tower->layers[1]->up->weight;
      const auto note = [&] {
        if (rank == 0) versions.push_back(static_cast<int64_t>(weight._version()));
      };
      note();
      sharded->begin();
      const BlockRunnerGuard guard(sharded->runner());
      const auto loss = tower->forward(torch::ones({2, 4})).sum();
      sharded->backward(0, loss, /*sync_gradients=*/true);
      sharded->end();
      note();
      {
        const torch::NoGradGuard no_grad;
        for (const auto& part : sharded->parts(0)) part.values.fill_(2);
      }
      sharded->updated(0);
      note();
      const auto whole = sharded->whole();
      values[rank] = weight.detach().clone();
      sharded->group().barrier();
    });
    REQUIRE(versions.size() == 3);
    CHECK(versions[1] == versions[0]);
    CHECK(versions[2] == versions[1] + 1);
    for (const torch::Tensor& value : values) {
      CHECK_THAT(value, test::AllClose(torch::full({5, 7}, 2), test::kExact));
    }
  }
}

TEST_CASE("sharded: a block is gathered twice in a step, the last one once", "[dist]") {
  std::vector<int64_t> bytes(2);
  test::run_ranks(2, [&](std::unique_ptr<dist::Group> group) {
    const auto rank = static_cast<size_t>(group->rank());
    const auto sharded = dist::make_sharded(parallel("fsdp"), std::move(group), c10::kFloat, 1);
    Tower tower(Shape(), 3);
    sharded->attach({tower->model()}, {});
    for (int64_t step = 0; step < 3; ++step) {  // the first one does not know the order
      const int64_t before = sharded->group().traffic().bytes;
      sharded->begin();
      const BlockRunnerGuard guard(sharded->runner());
      sharded->backward(0, tower->forward(torch::ones({2, 4})).sum(), /*sync_gradients=*/true);
      sharded->end();
      sharded->updated(0);
      bytes[rank] = sharded->group().traffic().bytes - before;
    }
    sharded->group().barrier();
  });
  // Elements, each parameter and each part a multiple of 16.
  const int64_t block = 2 * 96, root = 2 * 48;
  const int64_t gathered = (5 * block + root) / 2, summed = 3 * block + root;
  const int64_t had_gradient = 3 * 7 + 5;
  for (const int64_t given : bytes) CHECK(given == 4 * (gathered + summed + had_gradient));
}

TEST_CASE("sharded: buffers and weights are those of rank 0", "[dist]") {
  std::vector<torch::Tensor> buffers(3);
  test::run_ranks(3, [&](std::unique_ptr<dist::Group> group) {
    const auto rank = static_cast<size_t>(group->rank());
    const auto sharded = dist::make_sharded(parallel("hsdp", 3), std::move(group), c10::kFloat, 1);
    Tower tower(Shape(), 3);
    buffers[rank] = torch::full({2}, static_cast<double>(rank) + 4);
    sharded->attach({tower->model()}, {buffers[rank]});
    sharded->group().barrier();
  });
  for (const torch::Tensor& buffer : buffers) CHECK(buffer[1].item<float>() == 4);
}

/// 1 for each rank that has what lies first in the row of layer1: the first one of a copy.
std::vector<int> first_ranks(int64_t shard_ranks, const std::vector<std::string>& hosts) {
  std::vector<int> is_first(hosts.size());
  test::run_ranks(static_cast<int64_t>(hosts.size()), [&](std::unique_ptr<dist::Group> group) {
    const auto rank = static_cast<size_t>(group->rank());
    const auto sharded = dist::make_sharded(parallel("hsdp", shard_ranks), std::move(group),
                                            c10::kFloat, /*ranks_per_host=*/2, hosts[rank]);
    Tower tower(Shape{}, 3);
    sharded->attach({tower->model()}, {});
    for (const auto& part : sharded->parts(0)) {
      const bool is_there = part.values.numel() > 0;
      if (part.name == "layer1.gain" && is_there) is_first[rank] = 1;
    }
    sharded->group().barrier();
  });
  return is_first;
}

TEST_CASE("sharded: ranks of one host share a copy, whatever their numbers are", "[dist]") {
  using Flags = std::vector<int>;
  CHECK(first_ranks(0, {"a", "a", "b", "b"}) == Flags{1, 0, 1, 0});
  CHECK(first_ranks(0, {"a", "b", "a", "b"}) == Flags{1, 1, 0, 0});
  CHECK(first_ranks(2, {"a", "b", "b", "a"}) == Flags{1, 1, 0, 0});
  CHECK(first_ranks(2, {"b", "b", "b", "b"}) == Flags{1, 0, 1, 0});
  CHECK(first_ranks(1, {"a", "b", "a", "b"}) == Flags{1, 1, 1, 1});
  // More than a host has: two hosts to a copy.
  CHECK(first_ranks(4, {"a", "b", "a", "b"}) == Flags{1, 0, 0, 0});
}

TEST_CASE("sharded: groups of ranks that do not fit", "[dist]") {
  const auto error = [](int64_t shard_ranks, int64_t ranks_per_host) {
    return test::error_of([&] {
      test::run_ranks(4, [&](std::unique_ptr<dist::Group> group) {
        dist::make_sharded(parallel("hsdp", shard_ranks), std::move(group), c10::kFloat,
                           ranks_per_host);
      });
    });
  };
  CHECK_THAT(error(3, 1), Contains("shard_ranks is 3, but 4 ranks") && Contains("one of 1, 2, 4"));
  CHECK_THAT(error(0, 8), Contains("shard_ranks is 8 (the ranks of this host), but 4 ranks"));
  CHECK_THAT(error(0, 0), Contains("a divisor of the 4 ranks"));
}
