// `vgen train` as several processes that meet over TCP: equal losses, faults, launchers.

#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <thread>

#include "support/process.h"
#include "support/support.h"
#include "vgen/core/strings.h"

namespace vgen {
namespace {

using Catch::Contains;
using test::TempDir;
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// A port that nobody listens at now.
int64_t free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  REQUIRE(::bind(fd, reinterpret_cast<const sockaddr*>(&address), length) == 0);
  REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  ::close(fd);
  return ntohs(address.sin_port);
}

std::vector<std::string> train_arguments(const std::string& run_dir, int64_t steps,
                                         const std::string& strategy = "ddp") {
  return {"train",     test::project_path("tests/apps/tiny-tokenizer.yaml"),
          "--run-dir", run_dir,
          "--resume",  "auto",
          "--set",     str_cat("steps=", steps),
          "--set",     "parallel.strategy=" + strategy,
          "--set",     "parallel.timeout_s=20",
          "--set",     "data.train.path=" + test::project_path("data/digits.tar.gz")};
}

/// Processes that know each other as a launcher tells them.
class Ranks {
 public:
  Ranks(int64_t world_size, int64_t started, const std::vector<std::string>& arguments,
        const std::vector<std::string>& of_last = {}) {
    const int64_t port = free_port();
    for (int64_t rank = 0; rank < started; ++rank) {
      auto own = arguments;
      if (rank == started - 1) own.insert(own.end(), of_last.begin(), of_last.end());
      processes_.push_back(std::make_unique<test::Process>(
          test::vgen_executable(), own,
          std::vector<std::string>{str_cat("RANK=", rank), str_cat("WORLD_SIZE=", world_size),
                                   str_cat("LOCAL_RANK=", rank),
                                   str_cat("LOCAL_WORLD_SIZE=", world_size),
                                   "MASTER_ADDR=127.0.0.1", str_cat("MASTER_PORT=", port)}));
    }
  }

  test::Process& operator[](size_t rank) { return *processes_[rank]; }
  std::vector<test::ProcessResult> wait() {
    std::vector<test::ProcessResult> results;
    for (auto& process : processes_) results.push_back(process->wait());
    return results;
  }

 private:
  std::vector<std::unique_ptr<test::Process>> processes_;
};

std::string text_after(const std::string& line, const std::string& key) {
  const size_t at = line.find(key);
  return at == std::string::npos ? "" : line.substr(at + key.size());
}

/// train/gen_loss by step.
std::map<int64_t, double> losses(const std::string& run_dir) {
  std::map<int64_t, double> losses;
  for (const std::string& line : split(test::read_file(run_dir + "/metrics.jsonl"), '\n')) {
    const std::string loss = text_after(line, "\"train/gen_loss\":");
    if (!loss.empty()) losses[std::stoll(text_after(line, "\"step\":"))] = std::stod(loss);
  }
  return losses;
}

bool wait_for(const std::string& path) {
  for (int i = 0; i < 1200 && !fs::exists(path); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return fs::exists(path);
}

void check_equal(const std::map<int64_t, double>& found,
                 const std::map<int64_t, double>& expected) {
  REQUIRE(found.size() == expected.size());
  for (const auto& [step, loss] : expected) {
    INFO("step " << step);
    CHECK(found.at(step) == Approx(loss).epsilon(1e-5));
  }
}

TEST_CASE("several processes: the losses of one, and of a run that was killed", "[apps][dist]") {
  const TempDir dir;
  REQUIRE(test::run_vgen(train_arguments(dir / "one", 8, "none")).exit_code == 0);
  const auto expected = losses(dir / "one");
  REQUIRE(expected.size() == 8);

  const std::string strategy = GENERATE("ddp", "zero1", "fsdp");
  INFO(strategy);
  const std::string run = dir / strategy;
  {
    Ranks ranks(2, 2, train_arguments(run, 8, strategy));
    REQUIRE(wait_for(run + "/checkpoints/step_0000003"));
    ranks[1].signal(SIGKILL);
    const auto begin = Clock::now();
    const auto results = ranks.wait();
    CHECK(Clock::now() - begin < std::chrono::seconds(30));
    CAPTURE(results[0].err);
    CHECK(results[0].exit_code == 1);
    CHECK_THAT(results[0].err, Contains("no word from rank 1"));
  }
  // One more time, to the end.
  for (const auto& result : Ranks(2, 2, train_arguments(run, 8, strategy)).wait()) {
    CAPTURE(result.err);
    CHECK(result.exit_code == 0);
  }
  check_equal(losses(run), expected);

  // Another number of ranks goes on from there.
  for (const auto& result : Ranks(4, 4, train_arguments(run, 10, "fsdp")).wait()) {
    CAPTURE(result.err);
    CHECK(result.exit_code == 0);
  }
  REQUIRE(test::run_vgen(train_arguments(dir / "one", 10, "none")).exit_code == 0);
  check_equal(losses(run), losses(dir / "one"));
}

TEST_CASE("several processes: a signal to all saves and ends with 0", "[apps][dist]") {
  const TempDir dir;
  const std::string run = dir / "r";
  auto arguments = train_arguments(run, 100000);
  arguments.insert(arguments.end(), {"--set", "checkpoint.every=100000"});
  Ranks ranks(2, 2, arguments);
  REQUIRE(wait_for(run + "/metrics.jsonl"));
  ranks[0].signal(SIGTERM);
  ranks[1].signal(SIGTERM);
  for (const auto& result : ranks.wait()) {
    CAPTURE(result.err);
    CHECK(result.exit_code == 0);
  }
  CHECK(fs::exists(run + "/checkpoints/latest"));
}

TEST_CASE("several processes: what cannot go together is named by all", "[apps][dist]") {
  const TempDir dir;
  SECTION("another config") {
    const auto results =
        Ranks(2, 2, train_arguments(dir / "r", 4), {"--set", "optimizer.lr=0.25"}).wait();
    for (const auto& result : results) {
      CAPTURE(result.err);
      CHECK(result.exit_code == 1);
      CHECK_THAT(result.err, Contains("rank 1 (") && Contains("lr: 0.25") && Contains("rank 0"));
    }
    CHECK_FALSE(fs::exists(dir / "r/config.yaml"));
  }
  SECTION("a rank that never arrives") {
    const auto results = Ranks(4, 2, train_arguments(dir / "r", 4)).wait();
    for (const auto& result : results) {
      CAPTURE(result.err);
      CHECK(result.exit_code == 1);
      CHECK_THAT(result.err, Contains("ranks 2, 3 of 4 did not arrive within 20 s"));
    }
  }
  SECTION("ranks that do not divide the batch") {
    const auto results = Ranks(3, 3, train_arguments(dir / "r", 4)).wait();
    for (const auto& result : results) {
      CAPTURE(result.err);
      CHECK(result.exit_code == 1);
      CHECK_THAT(result.err, Contains("global_batch_size") && Contains("3"));
    }
  }
  SECTION("no strategy") {
    const auto results = Ranks(2, 2, train_arguments(dir / "r", 4, "none")).wait();
    for (const auto& result : results) {
      CAPTURE(result.err);
      CHECK(result.exit_code == 1);
      CHECK_THAT(result.err, Contains("parallel.strategy is none, but 2 processes"));
    }
  }
}

}  // namespace
}  // namespace vgen
