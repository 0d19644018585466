// Meeting, collectives and their errors, between threads that share a store.

#include "vgen/dist/group.h"

#include <torch/torch.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <cmath>
#include <functional>
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

using Clock = std::chrono::steady_clock;
constexpr int64_t kLongMs = 600'000;  // of what must not be waited for

/// "" or the message of what it throws. Unlike test::error_of, for threads.
std::string end_of(const std::function<void()>& body) {
  try {
    body();
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

/// What each body, on a thread of its own, ends with.
std::vector<std::string> ends_of(const std::vector<std::function<void()>>& bodies) {
  std::vector<std::string> ends(bodies.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < bodies.size(); ++i) {
    threads.emplace_back([&, i] { ends[i] = end_of(bodies[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  return ends;
}

/// What each of `started` ranks, as threads, that try to meet in `store` ends with.
std::vector<std::string> try_to_meet(const c10::intrusive_ptr<c10d::Store>& store, int64_t size,
                                     int64_t started, int64_t timeout_ms,
                                     std::vector<std::string> identities) {
  std::vector<std::function<void()>> bodies;
  for (int64_t rank = 0; rank < started; ++rank) {
    bodies.emplace_back([&, rank] {
      Group::join(store, rank, size, timeout_ms, identities[static_cast<size_t>(rank)]);
    });
  }
  return ends_of(bodies);
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

TEST_CASE("group: a rank that declines is named by all, who wait no longer", "[dist]") {
  const int64_t culprit = GENERATE(0, 2);
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::function<void()>> bodies;
  for (int64_t rank = 0; rank < 3; ++rank) {
    bodies.emplace_back([&, rank] {
      if (rank == culprit) return Group::decline(store, rank, 3, "a.yaml: no such file\nand more");
      Group::join(store, rank, 3, kLongMs);
    });
  }
  const auto begin = Clock::now();
  const auto ends = ends_of(bodies);
  CHECK(Clock::now() - begin < std::chrono::seconds(5));  // all were there
  for (size_t rank = 0; rank < 3; ++rank) {
    CAPTURE(rank, ends[rank]);
    if (static_cast<int64_t>(rank) == culprit) {
      CHECK(ends[rank].empty());
    } else {
      CHECK_THAT(ends[rank], Contains(str_cat("rank ", culprit, " (")) &&
                                 Contains(") failed before the ranks had met: a.yaml: no such") &&
                                 !Contains("and more"));
    }
  }
  // Started anew, they meet.
  bodies.clear();
  for (int64_t rank = 0; rank < 3; ++rank) {
    bodies.emplace_back([&, rank] { Group::join(store, rank, 3, 20000)->barrier(); });
  }
  for (const std::string& end : ends_of(bodies)) CHECK(end.empty());
}

TEST_CASE("group: a rank that never comes does not keep the others for long", "[dist]") {
  const auto without_first = c10::make_intrusive<c10d::HashStore>();
  const auto declined = c10::make_intrusive<c10d::HashStore>();
  const auto empty = c10::make_intrusive<c10d::HashStore>();
  const auto begin = Clock::now();
  const auto ends = ends_of({
      [&] { Group::join(without_first, 1, 3, 1000); },
      [&] { Group::join(without_first, 2, 3, 1000); },
      [&] { Group::join(declined, 0, 3, kLongMs); },
      [&] { Group::decline(declined, 1, 3, "no memory"); },
      [&] { Group::decline(empty, 1, 2, "no memory"); },
  });
  CHECK(Clock::now() - begin < std::chrono::seconds(30));
  for (const size_t rank : {1, 2}) {
    CHECK_THAT(ends[rank - 1],
               Contains(str_cat("rank ", rank, ": rank 0 of 3 did not arrive within 1 s")) &&
                   Contains("look at its output"));
  }
  CHECK_THAT(ends[2], Contains("rank 1 (") && Contains("had met: no memory"));
  for (const size_t i : {3, 4}) CHECK(ends[i].empty());
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

TEST_CASE("group: a collective that a rank never joins ends in time, and is named", "[dist]") {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::latch failed(1);
  std::string sum_end, gather_end;
  Clock::duration time{};
  const auto join = [&](int64_t rank) { return Group::join(store, rank, 2, /*timeout_ms=*/3000); };
  const auto come = [&] {
    const auto world = join(0);
    const auto part = world->split(0);
    const auto begin = Clock::now();
    auto gather = part->start_all_gather(torch::zeros({6}), torch::ones({3}));
    sum_end = end_of([&] { world->all_reduce_sum(torch::ones({2})); });
    gather_end = end_of([&] { gather.wait(); });
    time = Clock::now() - begin;
    world->abandon();
  };
  const auto stay_away = [&] {
    const auto world = join(1);
    const auto part = world->split(0);
    failed.wait();  // busy with something else
  };
  std::string problem;
  const auto ends = ends_of({[&] {
                               problem = end_of(come);
                               failed.count_down();
                             },
                             stay_away});
  CHECK(problem.empty());
  CHECK(ends[1].empty());
  CHECK(time < std::chrono::seconds(30));
  CHECK_THAT(sum_end, Contains("rank 0 of 2: sum over the ranks of 2 Float failed ("));
  CHECK_THAT(gather_end, Contains("rank 0 of 2: gathering of 3 Float failed ("));
  for (const std::string& end : {sum_end, gather_end}) {
    CHECK_THAT(end, Contains("; rank 1 (") && Contains(") is alive, but did not come") &&
                        !Contains("no word"));
  }
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
