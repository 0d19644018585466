// Meeting, collectives and their errors, between threads that share a store.

#include "vgen/dist/group.h"

#include <torch/torch.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <cmath>
#include <latch>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "support/ranks.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/tensor/device.h"

namespace vgen {
namespace {

using Catch::Contains;
using dist::Group;

/// What each of `size` threads that try to meet in `store` ends with: "" or its error.
std::vector<std::string> try_to_meet(const c10::intrusive_ptr<c10d::Store>& store, int64_t size,
                                     int64_t started, int64_t timeout_ms,
                                     std::vector<std::string> identities) {
  std::vector<std::string> ends(static_cast<size_t>(started));
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < started; ++rank) {
    const auto i = static_cast<size_t>(rank);
    threads.emplace_back([&, rank, i] {
      try {
        Group::join(store, rank, size, timeout_ms, identities[i]);
      } catch (const std::exception& error) {
        ends[i] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return ends;
}

/// What `size` ranks, as threads, find wrong with the collectives of tensors on a device.
void check_collectives(int64_t size, c10::DeviceType device) {
  std::vector<std::string> problems(static_cast<size_t>(size));
  const auto body = [&](std::unique_ptr<Group> owned) {
    Group& group = *owned;
    std::string& problem = problems[static_cast<size_t>(group.rank())];
    const auto check = [&](const char* what, bool is_right) {
      if (!is_right) problem += std::string(what) + " ";
    };
    const auto equal = [](const torch::Tensor& found, const torch::Tensor& expected) {
      return torch::equal(found.to(torch::kCPU, torch::kFloat), expected.to(torch::kFloat));
    };
    const double rank = static_cast<double>(group.rank()), n = static_cast<double>(size);
    const auto sum = torch::full({3}, rank + 1, device);
    group.all_reduce_sum(sum);
    check("sum", equal(sum, torch::full({3}, n * (n + 1) / 2)));

    const auto part = torch::full({2}, rank, device), all = torch::empty({2 * size}, device);
    group.start_all_gather(all, part).wait();
    check("gather", equal(all, torch::arange(size).repeat_interleave(2)));

    const auto own = torch::empty({2}, torch::TensorOptions(device).dtype(torch::kBFloat16));
    const auto given = torch::arange(2 * size).to(own.options());
    group.start_reduce_scatter_sum(own, given).wait();
    check("scatter", equal(own, n * (torch::arange(2) + 2 * group.rank()).to(torch::kFloat)));

    const auto value = torch::full({1}, rank, device);
    group.broadcast(value, size - 1);
    check("broadcast", value.item<double>() == n - 1);

    const auto texts = group.all_gather_text(str_cat("rank ", group.rank()));
    check("texts",
          texts.size() == static_cast<size_t>(size) && texts.back() == str_cat("rank ", size - 1));
    check("traffic", size == 1 || group.traffic().bytes == 12 + 8 + 4 * size + 4);
    group.barrier();
  };
  test::run_ranks(size, body, device);
  for (const std::string& problem : problems) CHECK(problem.empty());
}

TEST_CASE("group: sums, gathers, scatters, broadcasts and exchanges texts", "[dist]") {
  const int64_t size = GENERATE(1, 2, 3, 4);
  check_collectives(size, torch::kCPU);
}

TEST_CASE("group: the same on CUDA devices, through NCCL", "[dist][cuda]") {
  if (test::lacks_cuda()) return;
  // A device belongs to one rank: a single one leaves NCCL nothing to do.
  check_collectives(std::min<int64_t>(4, num_cuda_devices()), torch::kCUDA);
}

TEST_CASE("group: parts of it", "[dist]") {
  std::vector<double> sums(4);
  test::run_ranks(4, [&](std::unique_ptr<Group> owned) {
    Group& group = *owned;
    const auto pairs = group.split(group.rank() / 2), across = group.split(group.rank() % 2);
    const auto value = torch::full({1}, std::pow(10.0, static_cast<double>(group.rank())));
    pairs->all_reduce_sum(value);
    across->all_reduce_sum(value);
    sums[static_cast<size_t>(group.rank())] = value.item<double>() + across->rank();
    group.barrier();
  });
  CHECK(sums == std::vector<double>{1111, 1111, 1112, 1112});
}

TEST_CASE("group: who does not come or is another one is named on all", "[dist]") {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  for (const std::string& end : try_to_meet(store, 4, 2, 300, {"", ""})) {
    CHECK_THAT(end, Contains("ranks 2, 3 of 4 did not arrive within 0 s"));
  }
  // The same store, everyone anew: what the first ones left does not matter.
  for (const std::string& end : try_to_meet(store, 2, 2, 20000, {"", ""})) CHECK(end.empty());
  for (const std::string& end :
       try_to_meet(store, 2, 2, 20000, {"v1\nlr: 1\nseed: 2\n", "v1\nlr: 1\nseed: 3\n"})) {
    CHECK_THAT(end, Contains("rank 1 (") && Contains("'seed: 3', expected 'seed: 2'"));
  }
  for (const std::string& end :
       try_to_meet(store, 3, 3, 20000, {"vgen 1.2\n", "vgen 1.2\n", "vgen 1.3\n"})) {
    CHECK_THAT(end, Contains("rank 2 (") && Contains("'vgen 1.3', expected 'vgen 1.2'") &&
                        Contains("start all ranks with one version"));
  }
}

TEST_CASE("group: a rank that fails tells the others why", "[dist]") {
  std::vector<std::string> errors(3);
  test::run_ranks(3, [&](std::unique_ptr<Group> owned) {
    Group& group = *owned;
    if (group.rank() == 2) {
      group.report_failure("the disk is full\nand more");
      return;  // and leaves
    }
    try {
      group.all_reduce_sum(torch::ones({1}));
    } catch (const Error& error) {
      errors[static_cast<size_t>(group.rank())] = error.what();
    }
  });
  for (size_t rank : {0, 1}) {
    CHECK_THAT(errors[rank], Contains(str_cat("rank ", rank, " of 3: sum over the ranks")) &&
                                 Contains("; rank 2 (") && Contains("): the disk is full"));
    CHECK_THAT(errors[rank], !Contains("and more") && !Contains("no word"));
  }
}

TEST_CASE("group: of the silent ranks only those that are gone are named", "[dist]") {
  std::vector<std::string> errors(4);
  std::latch failed(2);
  test::run_ranks(4, [&](std::unique_ptr<Group> group) {
    const int64_t rank = group->rank();
    group->barrier();
    if (rank == 1) return;                // gone, without a word
    if (rank == 3) return failed.wait();  // busy with something else
    try {
      group->all_reduce_sum(torch::ones({1 << 16}));
    } catch (const std::exception& error) {
      errors[static_cast<size_t>(rank)] = error.what();
    }
    failed.count_down();
  });
  for (const size_t rank : {0, 2}) {
    CHECK_THAT(errors[rank], Contains("; no word from rank 1 (") && !Contains("rank 3 ("));
  }
}

TEST_CASE("group: a rank that comes too late is told from one that is gone", "[dist]") {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::string error;
  std::latch failed(1);
  const auto join = [&](int64_t rank) { return Group::join(store, rank, 2, /*timeout_ms=*/2000); };
  std::thread late([&] {
    const auto group = join(1);
    failed.wait();
  });
  {
    const auto group = join(0);
    try {
      group->all_gather_text("here");
    } catch (const Error& thrown) {
      error = thrown.what();
    }
    failed.count_down();
  }
  late.join();
  CHECK_THAT(error, Contains("nothing from rank 1 in 2 s") && Contains("; rank 1 (") &&
                        Contains(") is alive, but did not come") && !Contains("no word"));
}

TEST_CASE("group: a text of a rank that is gone is not waited for", "[dist]") {
  std::string message;
  test::run_ranks(2, [&](std::unique_ptr<Group> group) {
    group->barrier();
    if (group->rank() == 1) return group->report_failure("no such file");
    try {
      group->all_gather_text("here");
    } catch (const Error& error) {
      message = error.what();
    }
  });
  CHECK_THAT(message, Contains("exchange of text failed (rank 1 has failed)") &&
                          Contains("; rank 1 (") && Contains("): no such file"));
}

TEST_CASE("group: abandoned, neither it nor its parts wait for what is under way", "[dist]") {
  using Clock = std::chrono::steady_clock;
  Clock::duration time{};
  std::latch ended(1);
  test::run_ranks(2, [&](std::unique_ptr<Group> world) {
    auto part = world->split(0);
    world->barrier();
    if (world->rank() == 1) return ended.wait();  // gives nothing to the sum
    const auto begin = Clock::now();
    {
      const dist::Pending sum = part->start_all_reduce_sum(torch::ones({1}));
      world->abandon();
    }
    part.reset();
    world.reset();
    time = Clock::now() - begin;
    ended.count_down();
  });
  CHECK(time < std::chrono::seconds(10));
}

}  // namespace
}  // namespace vgen
