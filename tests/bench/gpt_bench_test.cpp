#include "vgen/bench/gpt_bench.h"

#include <catch2/catch.hpp>

namespace vgen::bench {
namespace {

using Catch::Contains;

TEST_CASE("bench gpt: the share of the memory's speed is left out where that is not known",
          "[bench]") {
  GptBenchReport report{.engine = "engine",
                        .threads = 2,
                        .num_parameters = 111,
                        .read_gb_per_second = 20,
                        .rows = {{.precision = "bf16",
                                  .batch = 8,
                                  .build_seconds = 0.5,
                                  .seconds = 1.5,
                                  .tokens_per_second = 1365,
                                  .weight_gb_per_second = 5,
                                  .bandwidth_share = 0.25,
                                  .gflops = 40,
                                  .peak_rss_mb = 700}}};
  CHECK(
      format_report(report) ==
      "engine, 2 threads, memory reads 20.0 GB/s\n"
      "precision  batch  seconds  tokens/s  weights GB/s  of memory  GFLOP/s  build s  peak MB\n"
      "bf16           8    1.500    1365.0           5.0        25%       40     0.50      700\n");
  CHECK_THAT(report_json(report),
             Contains("\"read_gb_per_second\"") && Contains("\"bandwidth_share\""));
  report.read_gb_per_second = report.rows[0].bandwidth_share = 0;  // as on CUDA
  CHECK(format_report(report) ==
        "engine, 2 threads\n"
        "precision  batch  seconds  tokens/s  weights GB/s  GFLOP/s  build s  peak MB\n"
        "bf16           8    1.500    1365.0           5.0       40     0.50      700\n");
  CHECK_THAT(report_json(report), !Contains("read_gb_per_second") && !Contains("bandwidth_share"));
}

}  // namespace
}  // namespace vgen::bench
