// `vgen doctor --plan` and `vgen bench collectives` as a user runs them.

#include <catch2/catch.hpp>

#include "support/process.h"
#include "support/support.h"
#include "vgen/core/strings.h"
#include "vgen/io/json.h"

namespace vgen {
namespace {

using Catch::Contains;

TEST_CASE("vgen doctor --plan: a table of strategies", "[apps]") {
  const std::string config = test::project_path("configs/gpt/b-256.yaml");
  const auto result =
      test::run_vgen({"doctor", "--plan", config, "--gpus", "8", "--gpu", "a100-80"});
  CAPTURE(result.err);
  REQUIRE(result.exit_code == 0);
  for (const char* word :
       {"none", "ddp", "zero1", "fsdp", "hsdp", "NVIDIA A100 SXM 80 GB", "fits and is fastest"}) {
    CHECK_THAT(result.out, Contains(word));
  }
  const auto json = test::run_vgen({"doctor", "--plan", config, "--gpus", "8", "--gpus-per-node",
                                    "4", "--set", "precision=fp32", "--json"});
  const io::Json report = io::parse_json(json.out);
  CHECK(report.get_string("precision") == "fp32");
  CHECK(report.get_int("shard_ranks") == 4);
  CHECK(report.get_array("rows").items.size() == 10);
  CHECK_THAT(test::run_vgen({"doctor", "--gpu", "list"}).out,
             Contains("h200") && Contains("rtx4090"));
  CHECK_THAT(test::vgen_error({"doctor", "--plan", config, "--gpu", "h20"}),
             Contains("unknown GPU 'h20', is it 'h200'?"));
  CHECK_THAT(test::vgen_error({"doctor", "--gpu", "h100"}), Contains("add --plan CONFIG"));
  CHECK(test::run_vgen({"doctor", "--gpus", "8"}).exit_code == 2);  // of what plan?
}

/// Runs what docs/distributed.md shows after "$ " in a block of its own, and compares.
void check_shown(const std::string& command) {
  CAPTURE(command);
  const std::string docs = test::read_file(test::project_path("docs/distributed.md"));
  const std::string head = str_cat("```\n$ ", command, "\n");
  const size_t begin = docs.find(head);
  REQUIRE(begin != std::string::npos);
  const size_t first = begin + head.size();
  const std::string shown = docs.substr(first, docs.find("```", first) - first);
  std::vector<std::string> words = split(command, ' ');
  REQUIRE(words[0] == "vgen");
  words.erase(words.begin());
  for (std::string& word : words) {
    if (word.ends_with(".yaml")) word = test::project_path(word);
  }
  const auto result = test::run_vgen(words);
  CAPTURE(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(result.out == shown);
}

TEST_CASE("vgen doctor --plan: prints what the documentation shows", "[apps]") {
  check_shown("vgen doctor --gpu list");
  check_shown("vgen doctor --plan configs/gpt/3b-384.yaml --gpus 16 --gpu h100 --gpus-per-node 8");
}

TEST_CASE("vgen bench collectives: local ranks, one table for each number", "[apps][dist]") {
  const std::vector<std::string> words{"bench",     "collectives", "--size-kib", "1,64",
                                       "--repeats", "2",           "--device",   "cpu",
                                       "--timeout", "60",          "--threads",  "1"};
  auto sweep = words;
  sweep.insert(sweep.end(), {"--ranks", "2,3", "--json"});
  const auto result = test::run_vgen(sweep);
  CAPTURE(result.err);
  REQUIRE(result.exit_code == 0);
  const io::Json reports = io::parse_json(result.out);
  REQUIRE(reports.items.size() == 2);
  for (size_t i = 0; i < 2; ++i) {
    const io::Json& report = reports.items[i];
    const double ranks = static_cast<double>(report.get_int("ranks"));
    CHECK(ranks == static_cast<double>(2 + i));
    const auto& rows = report.get_array("rows").items;
    REQUIRE(rows.size() == 6);  // three collectives of two sizes
    for (const io::Json& row : rows) {
      const double times = row.get_string("collective") == "all_reduce" ? 2 : 1;
      const double algorithm = row.get_float("algorithm_gb_s");
      CHECK(algorithm > 0);
      CHECK(algorithm == Approx(static_cast<double>(row.get_int("size_bytes")) / 1e9 /
                                row.get_float("seconds")));
      CHECK(row.get_float("bus_gb_s") == Approx(times * algorithm * (ranks - 1) / ranks));
    }
  }
  auto table = words;
  table[1] = "--collectives";
  table.insert(table.end(), {"--ranks", "2", "--collective", "all_reduce", "--dtype", "bf16"});
  CHECK_THAT(test::run_vgen(table).out,
             Contains("2 ranks, 2 on this host") && Contains("all_reduce") && Contains("64.0 KiB"));
}

TEST_CASE("vgen bench collectives: one process has nobody to talk to", "[apps][dist]") {
  CHECK_THAT(test::vgen_error({"bench", "collectives"}), Contains("--ranks N"));
  // Ranks that never come.
  CHECK_THAT(test::vgen_error({"bench", "collectives", "--ranks", "2"},
                              {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1"}),
             Contains("leave --ranks out"));
  CHECK(test::run_vgen({"bench", "collectives", "--ranks", "1"}).exit_code == 2);
}

}  // namespace
}  // namespace vgen
