#include "vgen/checkpoint/run_folder.h"

#include <catch2/catch.hpp>
#include <filesystem>

#include "support/support.h"

using namespace vgen;
using namespace vgen::checkpoint;
using Catch::Matchers::Contains;

TEST_CASE("run folder: a new one is made with its parents", "[checkpoint]") {
  const test::TempDir root;
  const RunFolder run(root / "a/b", /*may_exist=*/false);
  CHECK_FALSE(run.has_run());
  CHECK(std::filesystem::is_directory(root / "a/b"));
  CHECK(run.subfolder("samples") == root / "a/b/samples");
  CHECK(std::filesystem::is_directory(root / "a/b/samples"));
}

TEST_CASE("run folder: one that holds a run is only opened to continue it", "[checkpoint]") {
  const test::TempDir root;
  test::write_file(root / "config.yaml", "steps: 1\n");
  CHECK(test::error_of([&] { RunFolder(root.path(), false); }) ==
        root.path() +
            ": already holds a run; continue it with --resume auto, or name another folder with "
            "--run-dir");
  CHECK(RunFolder(root.path(), true).has_run());
  CHECK(test::read_file(root / "config.yaml") == "steps: 1\n");
}

TEST_CASE("run folder: a folder with other things is left alone", "[checkpoint]") {
  const test::TempDir root;
  test::write_file(root / "thesis.tex", "x");
  CHECK_THAT(test::error_of([&] { RunFolder(root.path(), true); }),
             Contains("holds other files than those of a run"));
  CHECK_FALSE(std::filesystem::exists(root / ".lock"));
}

TEST_CASE("run folder: two writers are refused", "[checkpoint]") {
  const test::TempDir root;
  {
    const RunFolder first(root / "run", false);
    CHECK_THAT(test::error_of([&] { RunFolder(root / "run", true); }),
               Contains("another process is training in this folder"));
  }
  CHECK_NOTHROW(RunFolder(root / "run", true));
}

TEST_CASE("run folder: a path that cannot be made is told in one line", "[checkpoint]") {
  const test::TempDir root;
  test::write_file(root / "file", "x");
  CHECK_THAT(test::error_of([&] { RunFolder(root / "file/run", false); }),
             Contains("file/run: cannot be made as a folder: "));
  CHECK_THAT(test::error_of([&] { RunFolder(root / "file", false); }),
             Contains("cannot be made as a folder: "));
  CHECK_THAT(test::error_of([&] { RunFolder("/proc/run", false); }),
             Contains("/proc/run: cannot be made as a folder: "));
  CHECK_THAT(test::error_of([&] { RunFolder("", false); }), Contains("name one with --run-dir"));
}

TEST_CASE("run folder: metrics after the checkpoint and cut lines are trimmed", "[checkpoint]") {
  const test::TempDir root;
  const std::string path = root / "metrics.jsonl";
  trim_metrics(path, 2);  // no file is fine
  CHECK_FALSE(std::filesystem::exists(path));
  test::write_file(path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st");
  trim_metrics(path, 2);
  CHECK(test::read_file(path) == "{\"step\":1}\n{\"step\":2}\n");
}
