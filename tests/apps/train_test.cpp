// `vgen train` as a process: signals, kills, full disks, damaged checkpoints, terminals.

#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <map>
#include <thread>

#include "support/process.h"
#include "support/support.h"
#include "vgen/core/strings.h"

namespace vgen {
namespace {

using test::TempDir;
namespace fs = std::filesystem;

std::vector<std::string> train_arguments(const std::string& run_dir, int64_t steps) {
  return {"train",     test::project_path("tests/apps/tiny-tokenizer.yaml"),
          "--run-dir", run_dir,
          "--resume",  "auto",
          "--set",     str_cat("steps=", steps),
          "--set",     "data.train.path=" + test::project_path("data/digits.tar.gz")};
}

/// The lines of metrics.jsonl without what was measured with a clock.
std::map<std::string, std::string> losses(const std::string& run_dir) {
  std::map<std::string, std::string> losses;
  for (const std::string& line : split(test::read_file(run_dir + "/metrics.jsonl"), '\n')) {
    if (line.empty()) continue;
    const std::string step = line.substr(0, line.find(','));
    CHECK_FALSE(losses.contains(step));
    losses[step] = line.substr(0, line.find("\"train/images_per_s\""));
  }
  return losses;
}

bool wait_for(const std::string& path) {
  for (int i = 0; i < 1200 && !fs::exists(path); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return fs::exists(path);
}

/// Every file below a folder, with its contents.
std::map<std::string, std::string> files_below(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string path = entry.path().string();
    if (entry.is_regular_file()) files[path] = test::read_file(path);
  }
  return files;
}

/// Runs vgen on a terminal of 120 columns: all that appears on it.
std::string run_on_terminal(const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {test::vgen_executable()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  const winsize size{.ws_row = 24, .ws_col = 120, .ws_xpixel = 0, .ws_ypixel = 0};
  int terminal = -1;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, &size);
  REQUIRE(child >= 0);
  if (child == 0) {
    execv(pointers[0], pointers.data());
    _exit(127);
  }
  std::string text;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(terminal, buffer, sizeof(buffer))) > 0;) {
    text.append(buffer, static_cast<size_t>(got));
  }
  close(terminal);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CAPTURE(text);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  return text;
}

TEST_CASE("vgen train: killed at any moment, it goes on to the same losses", "[apps]") {
  const TempDir dir;
  constexpr int64_t kSteps = 24;
  REQUIRE(test::run_vgen(train_arguments(dir / "whole", kSteps)).exit_code == 0);
  const auto expected = losses(dir / "whole");
  REQUIRE(expected.size() == kSteps);

  // It saves after every step, so most kills fall into a save. Each time it gets a bit further.
  const std::string run = dir / "killed";
  for (int64_t goal = 3; goal < kSteps; goal += 6) {
    test::Process process(test::vgen_executable(), train_arguments(run, kSteps));
    REQUIRE(wait_for(str_cat(run, "/checkpoints/step_00000", goal < 10 ? "0" : "", goal)));
    process.signal(SIGKILL);
    CHECK(process.wait().exit_code == 128 + SIGKILL);
  }
  const test::ProcessResult last = test::run_vgen(train_arguments(run, kSteps));
  CAPTURE(last.err);
  CHECK(last.exit_code == 0);
  CHECK(losses(run) == expected);
  CHECK(test::read_file(run + "/checkpoints/step_0000024/model.safetensors") ==
        test::read_file(dir / "whole/checkpoints/step_0000024/model.safetensors"));
}

TEST_CASE("vgen train: SIGTERM and SIGINT finish the step, save and exit with 0", "[apps]") {
  const auto [number, name] = GENERATE(std::pair{SIGTERM, "TERM"}, std::pair{SIGINT, "INT"});
  CAPTURE(name);
  const TempDir dir;
  const std::string run = dir / "r";
  auto arguments = train_arguments(run, 100000);
  arguments.insert(arguments.end(), {"--set", "checkpoint.every=100000"});
  test::Process process(test::vgen_executable(), arguments);
  REQUIRE(wait_for(run + "/metrics.jsonl"));
  process.signal(number);
  const test::ProcessResult result = process.wait();
  CAPTURE(result.err);
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.err, Catch::Contains(str_cat("stopped by ", name, " after step ")));
  CHECK(fs::exists(run + "/checkpoints/latest"));
}

TEST_CASE("vgen train: a disk that fills up costs the new checkpoint only", "[apps]") {
  const TempDir dir;
  const std::string run = dir / "r";
  REQUIRE(test::run_vgen(train_arguments(run, 2)).exit_code == 0);
  const std::string before = test::read_file(run + "/checkpoints/step_0000002/index.json");
  // A file may have 100 KiB: the weights have more.
  std::string command = "ulimit -f 100; trap '' XFSZ; exec";
  command += " '" + test::vgen_executable() + "'";
  for (const std::string& word : train_arguments(run, 4)) command += " '" + word + "'";
  const test::ProcessResult result = test::run_process("bash", {"-c", command});
  CAPTURE(result.err);
  CHECK(result.exit_code == 1);
  CHECK_THAT(result.err, Catch::Contains("File too large"));
  CHECK(test::read_file(run + "/checkpoints/step_0000002/index.json") == before);
  CHECK_FALSE(fs::exists(run + "/checkpoints/step_0000003"));
  REQUIRE(test::run_vgen(train_arguments(run, 4)).exit_code == 0);
  CHECK(fs::exists(run + "/checkpoints/step_0000004/index.json"));
}

TEST_CASE("vgen train: where every checkpoint is damaged nothing is begun or lost", "[apps]") {
  const TempDir dir;
  const std::string run = dir / "r", checkpoints = run + "/checkpoints";
  REQUIRE(test::run_vgen(train_arguments(run, 2)).exit_code == 0);
  for (const std::string step : {"1", "2"}) {
    fs::resize_file(checkpoints + "/step_000000" + step + "/model.safetensors", 1000);
  }
  fs::remove(run + "/log.txt");  // the only file that grows
  const auto before = files_below(run);
  const std::string error = test::vgen_error(train_arguments(run, 4));
  CHECK_THAT(error, Catch::Contains(run + ": holds no valid checkpoint: step_0000002: "
                                          "model.safetensors has 1000 bytes, expected ") &&
                        Catch::Contains("; step_0000001: model.safetensors has 1000 bytes") &&
                        Catch::Contains("move " + checkpoints + " away to start over"));
  fs::remove(run + "/log.txt");
  CHECK((files_below(run) == before));

  fs::rename(checkpoints, dir / "away");
  REQUIRE(test::run_vgen(train_arguments(run, 2)).exit_code == 0);
  CHECK(fs::exists(checkpoints + "/step_0000002/index.json"));
}

TEST_CASE("vgen train: a bar on a terminal, plain lines elsewhere", "[apps]") {
  const TempDir dir;
  const std::string shown = run_on_terminal(train_arguments(dir / "bar", 4));
  CAPTURE(shown);
  // Drawn in place, erased before anything else is written, and gone at the end.
  CHECK_THAT(shown, Catch::Contains("[#####...............] train: 1/4 steps 25% | ") &&
                        Catch::Contains("\r\033[K") && Catch::Contains("train: 4/4 steps in "));
  CHECK(shown.find("[#") < shown.find("\r\033[K"));
  CHECK(shown.rfind("[#") < shown.rfind("\r\033[K"));

  const test::ProcessResult piped = test::run_vgen(train_arguments(dir / "lines", 4));
  CAPTURE(piped.err);
  CHECK(piped.exit_code == 0);
  CHECK_THAT(piped.err, Catch::Contains(" I train: 1/4 steps 25% | ") &&
                            Catch::Contains("train: 4/4 steps in "));
  CHECK(piped.err.find_first_of("\r\033") == std::string::npos);
  CHECK(piped.err.find("[#") == std::string::npos);
}

TEST_CASE("vgen train: errors are one line and leave nothing", "[apps]") {
  const TempDir dir;
  const std::string config = test::project_path("tests/apps/tiny-tokenizer.yaml");
  const std::string run = dir / "r";
  const auto error = [&](const std::string& assignment) {
    return test::vgen_error({"train", config, "--run-dir", run, "--set", assignment});
  };
  using Catch::Contains;
  CHECK_THAT(error("optimizer.learning=1"), Contains("unknown key"));
  CHECK_THAT(error("data.train.path=/no/such/folder"), Contains("/no/such/folder"));
  CHECK_THAT(error("data.image_size=31"), Contains("multiple of 4"));
  CHECK_THAT(test::vgen_error({"train", config, "--run-dir", run, "--set",
                               "loss.perceptual_weight=1", "--set", "lpips.vgg=/no/such/vgg16.pth",
                               "--set", "lpips.lin=/no/such/vgg.pth"}),
             Contains("/no/such/vgg16.pth: no such file; LPIPS needs torchvision's VGG16 ") &&
                 Contains("https://download.pytorch.org/models"));
  CHECK_FALSE(fs::exists(run));
  CHECK_THAT(test::vgen_error({"train", "/no/such.yaml"}), Contains("/no/such.yaml"));
  test::write_file(dir / "bad.yaml", "steps: [1, 2\n");
  CHECK_THAT(test::vgen_error({"train", dir / "bad.yaml"}), Contains("bad.yaml:"));
  CHECK_THAT(test::vgen_error({"train", config, "--run-dir", "/proc/r", "--set",
                               "data.train.path=" + test::project_path("data/digits.tar.gz")}),
             Contains("/proc/r"));
}

}  // namespace
}  // namespace vgen
