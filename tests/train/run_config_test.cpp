// Settings that every run has: what "auto" stands for in `checkpoint:`.

#include "vgen/train/run_config.h"

#include <catch2/catch.hpp>

#include "support/support.h"
#include "vgen/core/strings.h"

namespace vgen::train {
namespace {

using Catch::Contains;

checkpoint::CheckpointConfig kept(const std::string& yaml) {
  return kept_checkpoints(read_config<RunConfig>(parse_yaml(yaml, "run.yaml")));
}

TEST_CASE("run config: the best checkpoint is told by the task", "[train]") {
  for (const std::string task : {"tokenizer", "var_tokenizer"}) {
    INFO(task);
    const auto config = kept(str_cat("task: ", task));
    CHECK(config.best_metric == "psnr");
    CHECK(config.best_mode == "max");
  }
  for (const std::string task : {"gpt", "var"}) {
    INFO(task);
    const auto config = kept(str_cat("task: ", task, "\ncheckpoint: {every: 7}\n"));
    CHECK(config.best_metric == "loss");
    CHECK(config.best_mode == "min");
    CHECK(config.every == 7);
    // As runs of before wrote it.
    const auto written =
        kept(str_cat("task: ", task, "\ncheckpoint: {best_metric: psnr, best_mode: max}\n"));
    CHECK(written.best_metric == "psnr");
    CHECK(written.best_mode == "max");
  }
}

TEST_CASE("run config: the mode follows from the metric that is named", "[train]") {
  const auto mode = [](const std::string& metric) {
    return kept(str_cat("checkpoint: {best_metric: ", metric, "}")).best_mode;
  };
  for (const char* metric :
       {"loss", "loss_last", "rec_loss", "rec_loss_p4", "lpips", "dead_codes"}) {
    INFO(metric);
    CHECK(mode(metric) == "min");
  }
  for (const char* metric : {"psnr", "accuracy", "accuracy_last", "codebook_usage", "usage_p4"}) {
    INFO(metric);
    CHECK(mode(metric) == "max");
  }
  CHECK(kept("checkpoint: {best_metric: loss, best_mode: max}").best_mode == "max");
  CHECK_THAT(test::error_of([] { kept("checkpoint: {best_mode: low}"); }),
             Contains("'checkpoint.best_mode': expected one of auto, max, min; found 'low'"));
}

TEST_CASE("run config: the resolved config keeps what auto stands for open", "[train]") {
  RunConfig config;
  config.task = "gpt";
  const std::string yaml = dump_config(config);
  CHECK_THAT(yaml, Contains("best_metric: auto\n") && Contains("best_mode: auto\n"));
  CHECK(kept(yaml).best_metric == "loss");
}

}  // namespace
}  // namespace vgen::train
