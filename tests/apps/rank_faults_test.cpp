// `vgen train` as several processes of which one is stuck, killed or has an error of its own, and
// what a run tells of its speed.

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <iostream>

#include "support/process.h"
#include "support/support.h"
#include "train_runs.h"
#include "vgen/core/strings.h"

namespace vgen {
namespace {

using Catch::Contains;
using test::Ranks;
using test::TempDir;
using test::wait_for_step;
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Texts = std::vector<std::string>;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Stops the thread that trains, and no other of the process. False: that is not permitted.
bool stop_main_thread(pid_t pid) {
  int status = 0;
  return ::ptrace(PTRACE_SEIZE, pid, nullptr, nullptr) == 0 &&
         ::ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) == 0 &&
         ::waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status);
}

TEST_CASE("several processes: a rank that is stuck, and a stuck keeper of the store, are named",
          "[apps][dist]") {
  const TempDir dir;
  const Texts own{"parallel.timeout_s=5"};
  Ranks stuck(2, 2, test::endless_arguments(dir / "a", "fsdp", own));
  Ranks silent(2, 2, test::endless_arguments(dir / "b", "fsdp", own));
  REQUIRE(wait_for_step(dir / "a", 2));
  REQUIRE(wait_for_step(dir / "b", 2));
  if (!stop_main_thread(stuck[1].pid())) {
    std::cout << "skipped here: ptrace is not permitted" << std::endl;
    return;
  }
  silent[0].signal(SIGSTOP);
  const auto begin = Clock::now();
  const auto of_stuck = stuck[0].wait(), of_silent = silent[1].wait();
  CHECK(seconds_since(begin) < 60);
  CAPTURE(of_stuck.err, of_silent.err);
  CHECK(of_stuck.exit_code == 1);
  CHECK_THAT(of_stuck.err, Contains("; rank 1 (") && Contains(") is alive, but did not come"));
  CHECK_THAT(test::read_file(dir / "a/log.txt"), Contains(") is alive, but did not come"));
  CHECK(of_silent.exit_code == 1);
  CHECK_THAT(of_silent.err,
             Contains("rank 1 of 2: no answer in 10 s from the store of the ranks at 127.0.0.1:"));
}

TEST_CASE("several processes: rank 0, which keeps the store, is killed in a step", "[apps][dist]") {
  const TempDir dir;
  const std::string run = dir / "r";
  Ranks ranks(2, 2, test::endless_arguments(run, "fsdp"));
  REQUIRE(wait_for_step(run, 3));
  ranks[0].signal(SIGKILL);
  const auto begin = Clock::now();
  const auto result = ranks[1].wait();
  CHECK(seconds_since(begin) < 25);  // the timeout is 30 s
  CAPTURE(result.err);
  CHECK(result.exit_code == 1);
  CHECK_THAT(result.err, Contains("rank 1 of 2: ") && Contains(" failed (") &&
                             Contains("the store of the ranks is gone: rank 0 or the launcher has "
                                      "ended"));
}

/// While this lives, a relative path begins in that folder.
class WorkingFolder {
 public:
  explicit WorkingFolder(const std::string& path) : before_(fs::current_path()) {
    fs::current_path(path);
  }
  ~WorkingFolder() { fs::current_path(before_); }
  WorkingFolder(const WorkingFolder&) = delete;
  WorkingFolder& operator=(const WorkingFolder&) = delete;

 private:
  fs::path before_;
};

TEST_CASE("several processes: of a picture that one rank cannot read rank 0's log tells",
          "[apps][dist]") {
  const TempDir dir;
  const std::string run = dir / "r";
  for (const std::string host : {"a", "b"}) {
    fs::create_directories(dir / host);
    const auto unpacked = test::run_process(
        "tar", {"-xzf", test::project_path("data/digits.tar.gz"), "-C", dir / host, "train/0"});
    REQUIRE(unpacked.exit_code == 0);
  }
  // The same path, as hosts have it that do not share a disk. An epoch has some thirty steps.
  int64_t number = 0;
  for (const auto& entry : fs::directory_iterator(dir / "b/train/0")) {
    if (++number % 5 == 0) test::write_file(entry.path().string(), "no picture");
  }
  auto arguments = test::endless_arguments(run, "fsdp");
  arguments.insert(arguments.end(), {"--set", "data.train.path=.", "--set", "data.on_broken=fail"});
  const auto ranks = [&] {
    const WorkingFolder folder(dir / "a");
    return std::make_unique<Ranks>(2, 2, arguments,
                                   test::OneRank{.shell = str_cat("cd ", dir / "b")});
  }();
  char host[256] = "";
  REQUIRE(::gethostname(host, sizeof(host) - 1) == 0);
  const std::string name = str_cat("; rank 1 (", host, " process ", (*ranks)[1].pid(), "): ");
  const auto begin = Clock::now();
  const auto results = ranks->wait();
  CHECK(seconds_since(begin) < 60);
  CAPTURE(results[0].err, results[1].err);
  CHECK(results[0].exit_code == 1);
  CHECK(results[1].exit_code == 1);
  const std::string log = test::read_file(run + "/log.txt");
  const size_t at = log.find(name);
  REQUIRE(at != std::string::npos);
  CHECK_THAT(log.substr(at), Contains(".png"));
  CHECK_THAT(results[1].err, Contains("vgen: error: ") && Contains(".png"));
}

/// A run of two ranks that is killed and started again has the values of one that was left alone.
/// arguments: of `vgen train` but for the run folder; they log every step from 1 to 60.
void check_killed(const TempDir& dir, const Texts& arguments, const std::string& name,
                  size_t victim) {
  const auto with_run = [&](const std::string& run) {
    Texts words = arguments;
    words.insert(words.end(), {"--run-dir", run, "--resume", "auto"});
    return words;
  };
  Ranks(2, 2, with_run(dir / "whole")).finish();
  const std::string run = dir / "cut";
  {
    Ranks ranks(2, 2, with_run(run));
    REQUIRE(wait_for_step(run, 30));
    ranks[victim].signal(SIGKILL);
    const auto result = ranks[1 - victim].wait();
    CAPTURE(result.err);
    CHECK(result.exit_code == 1);
  }
  Ranks(2, 2, with_run(run)).finish();
  CHECK_THAT(test::read_file(run + "/log.txt"), Contains("going on after step "));
  const auto expected = test::metric(dir / "whole", name);
  CHECK(expected.size() == 60);
  test::check_losses(test::metric(run, name), expected);
}

TEST_CASE("several processes: a tokenizer and its discriminator go on after a kill",
          "[apps][dist]") {
  const TempDir dir;
  Texts arguments{"train", test::project_path("tests/apps/tiny-tokenizer.yaml")};
  for (const std::string& assignment :
       {std::string("steps=60"), std::string("parallel.strategy=fsdp"),
        std::string("parallel.timeout_s=30"), std::string("checkpoint.every=10"),
        str_cat("data.train.path=", test::project_path("data/digits.tar.gz")),
        std::string("loss.disc_weight=0.1"), std::string("loss.disc_start=5"),
        std::string("loss.disc_dim=6"), std::string("loss.disc_num_layers=2")}) {
    arguments.insert(arguments.end(), {"--set", assignment});
  }
  check_killed(dir, arguments, "train/gen_loss", 1);
  // It has begun, and goes on as it was.
  const auto disc_losses = test::metric(dir / "whole", "train/disc_loss");
  CHECK(disc_losses.at(60) > 0);
  test::check_losses(test::metric(dir / "cut", "train/disc_loss"), disc_losses);
}

/// What `vgen train` takes for a GPT of two layers on codes of digits, 16 a sample, in batches
/// of 8.
Texts gpt_arguments(const TempDir& dir, int64_t steps, const std::string& strategy) {
  return {"train", dir / "gpt.yaml",
          "--set", str_cat("steps=", steps),
          "--set", str_cat("parallel.strategy=", strategy)};
}

void write_gpt(const TempDir& dir) {
  test::extract_digits(dir / "codes", 40);
  test::write_file(
      dir / "gpt.yaml",
      str_cat("task: gpt\nglobal_batch_size: 8\nprecision: fp32\nthreads: 1\nlog_every: 1\n"
              "tensorboard: false\npeak_tflops: 0.25\n"
              "model: {vocab_size: 96, block_size: 16, n_layer: 2, n_head: 2, dim: 64, "
              "multiple_of: 32, num_classes: 10}\npreview: {num_images: 0}\n"
              "optimizer: {kind: adamw, lr: 1e-3}\ncheckpoint: {every: 10}\ndata: {train: ",
              dir / "codes", "}\nparallel: {timeout_s: 30}\n"));
}

TEST_CASE("several processes: a GPT goes on after a kill", "[apps][dist]") {
  const TempDir dir;
  write_gpt(dir);
  check_killed(dir, gpt_arguments(dir, 60, "fsdp"), "train/loss", 0);
}

TEST_CASE("several processes: tokens per second and MFU are those of all ranks", "[apps][dist]") {
  const TempDir dir;
  write_gpt(dir);
  const std::string run = dir / "r";
  const auto with_width = [&](int64_t steps, const std::string& strategy, const std::string& to) {
    // Wide enough for its steps to take far longer than the lines about them.
    auto arguments = gpt_arguments(dir, steps, strategy);
    arguments.insert(arguments.end(), {"--run-dir", to, "--set", "model.dim=256", "--set",
                                       "checkpoint.every=100000"});
    return arguments;
  };
  Ranks ranks(2, 2, with_width(100000, "fsdp", run));
  // What the lines between two moments tell, against a clock of this process.
  REQUIRE(wait_for_step(run, 5));
  const auto begin = Clock::now();
  const int64_t first = test::metric(run, "train/lr").rbegin()->first;
  REQUIRE(wait_for_step(run, first + 40));
  const double seconds = seconds_since(begin);
  ranks[0].signal(SIGTERM);
  ranks.finish();
  const auto tokens_per_s = test::metric(run, "train/tokens_per_s");
  double told_seconds = 0;
  for (int64_t step = first + 1; step <= first + 40; ++step) {
    told_seconds += 8 * 16 / tokens_per_s.at(step);
  }
  // A step ends before its line is written; ranks counted twice or one alone would be half or
  // twice.
  CHECK(told_seconds < 1.2 * seconds);
  CHECK(told_seconds > 0.6 * seconds);
  CHECK(test::metric(run, "train/images_per_s").at(first) ==
        Approx(tokens_per_s.at(first) / 16).epsilon(1e-9));

  // Two devices could do twice as much as one.
  REQUIRE(test::run_vgen(with_width(3, "none", dir / "one")).exit_code == 0);
  const double share = test::metric(run, "train/mfu").at(first) / tokens_per_s.at(first);
  const double share_of_one = test::metric(dir / "one", "train/mfu").at(2) /
                              test::metric(dir / "one", "train/tokens_per_s").at(2);
  CHECK(share_of_one > 0);
  CHECK(share == Approx(share_of_one / 2).epsilon(1e-6));
}

}  // namespace
}  // namespace vgen
