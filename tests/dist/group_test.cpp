// Meeting, collectives and their errors, between threads that share a store.

#include "vgen/dist/group.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <cmath>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "support/ranks.h"
#include "support/support.h"
#include "vgen/core/error.h"
#include "vgen/core/strings.h"

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

TEST_CASE("group: sums, gathers, scatters, broadcasts and exchanges texts", "[dist]") {
  const int64_t size = GENERATE(1, 2, 3, 4);
  std::vector<std::string> problems(static_cast<size_t>(size));
  test::run_ranks(size, [&](std::unique_ptr<Group> owned) {
    Group& group = *owned;
    std::string& problem = problems[static_cast<size_t>(group.rank())];
    const auto check = [&](const char* what, bool is_right) {
      if (!is_right) problem += std::string(what) + " ";
    };
    const double rank = static_cast<double>(group.rank()), n = static_cast<double>(size);
    const auto sum = torch::full({3}, rank + 1);
    group.all_reduce_sum(sum);
    check("sum", torch::equal(sum, torch::full({3}, n * (n + 1) / 2)));

    const auto part = torch::full({2}, rank), all = torch::empty({2 * size});
    group.start_all_gather(all, part).wait();
    check("gather", torch::equal(all, torch::arange(size).repeat_interleave(2).to(torch::kFloat)));

    const auto own = torch::empty({2}, torch::kBFloat16);
    group.start_reduce_scatter_sum(own, torch::arange(2 * size).to(torch::kBFloat16)).wait();
    check("scatter", torch::equal(own.to(torch::kFloat),
                                  n * (torch::arange(2) + 2 * group.rank()).to(torch::kFloat)));

    const auto value = torch::full({1}, rank);
    group.broadcast(value, size - 1);
    check("broadcast", value.item<double>() == n - 1);

    const auto texts = group.all_gather_text(str_cat("rank ", group.rank()));
    check("texts",
          texts.size() == static_cast<size_t>(size) && texts.back() == str_cat("rank ", size - 1));
    check("traffic", size == 1 || group.traffic().bytes == 12 + 8 + 4 * size + 4);
    group.barrier();
  });
  for (const std::string& problem : problems) CHECK(problem.empty());
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

}  // namespace
}  // namespace vgen
