// What a run tells of the time in which ranks stood still for each other.

#include <catch2/catch.hpp>
#include <cmath>
#include <string>
#include <vector>

#include "codes/codes_support.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/core/strings.h"
#include "vgen/io/json.h"
#include "vgen/train/run.h"

namespace vgen::train {
namespace {

/// The training lines of the metrics of a small GPT's run. Log lines, validations and checkpoints
/// come at different steps.
std::vector<io::Json> train_lines(const std::string& device) {
  const test::TempDir dir;
  test::write_codes(dir / "codes", test::square_info(64), 40, 16);
  test::write_file(
      dir / "gpt.yaml",
      str_cat("task: gpt\nsteps: 12\nprecision: fp32\nthreads: 1\nglobal_batch_size: 8\ndevice: ",
              device,
              "\nlog_every: 4\nvalidate_every: 3\ncheckpoint: {every: 5}\n"
              "model: {vocab_size: 64, block_size: 16, n_layer: 2, n_head: 2, dim: 40, "
              "multiple_of: 20, num_classes: 3}\npreview: {num_images: 0}\ndata: {train: ",
              dir / "codes", ", val: ", dir / "codes", "}\n"));
  run({dir / "gpt.yaml", {}, dir / "run", "never"});
  std::vector<io::Json> lines;
  for (const auto& line : split(test::read_file(dir / "run/metrics.jsonl"), '\n')) {
    if (line.find("\"train/lr\":") != std::string::npos) lines.push_back(io::parse_json(line));
  }
  return lines;
}

TEST_CASE("run: one process stands still for nobody", "[train]") {
  const auto lines = train_lines("cpu");
  REQUIRE(lines.size() == 3);
  for (const io::Json& line : lines) {
    CHECK(line.get_float("train/comm_wait_share") == 0);
    CHECK(line.get_float("train/comm_mb_per_step") == 0);
    CHECK(line.find("train/comm_wait_share_rank0") == nullptr);
  }
}

TEST_CASE("run: on a CUDA device the share of waits is told, too", "[train][cuda]") {
  if (test::lacks_cuda()) return;
  const auto lines = train_lines("cuda");
  REQUIRE(lines.size() == 3);
  for (const io::Json& line : lines) {
    // One process: NCCL has nothing to send.
    CHECK(line.get_float("train/comm_wait_share") >= 0);
    CHECK(line.get_float("train/comm_wait_share") <= 1);
    CHECK(line.get_float("train/images_per_s") > 0);
    CHECK(std::isfinite(line.get_float("train/images_per_s")));
    CHECK(line.get_float("train/data_wait_share") <= 1);
  }
}

}  // namespace
}  // namespace vgen::train
