#include "vgen/core/log.h"

#include <catch2/catch.hpp>

#include "support/support.h"
#include "vgen/core/error.h"

namespace vgen {

TEST_CASE("log: lines go to the file, below the level none", "[core]") {
  const test::TempDir dir;
  init_logging({.level = LogLevel::kWarning, .file = dir / "log.txt"});
  log_info("not shown");
  log_warning("disk ", 97, " % full");
  log_error("gone");
  init_logging({});
  const std::string text = test::read_file(dir / "log.txt");
  CHECK_THAT(text, Catch::Contains("W disk 97 % full"));
  CHECK_THAT(text, Catch::Contains("E gone"));
  CHECK_THAT(text, !Catch::Contains("not shown"));
}

TEST_CASE("log: a rank above 0 names itself", "[core]") {
  const test::TempDir dir;
  init_logging({.file = dir / "log.txt", .rank = 2, .world_size = 4});
  log_warning("slow");
  init_logging({});
  CHECK_THAT(test::read_file(dir / "log.txt"), Catch::Contains("[rank 2] slow"));
}

TEST_CASE("log: an unwritable file is an error", "[core]") {
  CHECK_THAT(test::error_of([] { init_logging({.file = "/dev/null/log.txt"}); }),
             Catch::StartsWith("/dev/null/log.txt: cannot open the log file"));
}

TEST_CASE("progress: counts, percent, fields, and a last line", "[core]") {
  const test::TempDir dir;
  init_logging({.file = dir / "log.txt"});
  {
    Progress progress({.label = "train", .unit = "steps", .total = 4, .line_interval_seconds = 0});
    for (int64_t step = 1; step <= 4; ++step) progress.update(step, "loss 0.5");
    progress.finish("loss 0.5");
  }
  init_logging({});
  const std::string text = test::read_file(dir / "log.txt");
  CHECK_THAT(text, Catch::Contains("train: 2/4 steps 50% | loss 0.5 | ETA "));
  CHECK_THAT(text, Catch::Contains("train: 4/4 steps in "));
}

}  // namespace vgen
