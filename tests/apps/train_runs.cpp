#include "train_runs.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <thread>

#include "support/support.h"
#include "vgen/core/strings.h"

namespace vgen::test {

namespace {

std::string text_after(const std::string& line, const std::string& key) {
  const size_t at = line.find(key);
  return at == std::string::npos ? "" : line.substr(at + key.size());
}

}  // namespace

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
                                         const std::string& strategy,
                                         const std::vector<std::string>& assignments) {
  std::vector<std::string> arguments{
      "train",     project_path("tests/apps/tiny-tokenizer.yaml"),
      "--run-dir", run_dir,
      "--resume",  "auto",
      "--set",     str_cat("steps=", steps),
      "--set",     str_cat("parallel.strategy=", strategy),
      "--set",     "parallel.timeout_s=30",
      "--set",     str_cat("data.train.path=", project_path("data/digits.tar.gz"))};
  for (const std::string& assignment : assignments) {
    arguments.insert(arguments.end(), {"--set", assignment});
  }
  return arguments;
}

std::vector<std::string> endless_arguments(const std::string& run_dir, const std::string& strategy,
                                           std::vector<std::string> assignments) {
  assignments.push_back("checkpoint.every=100000");
  return train_arguments(run_dir, 100000, strategy, assignments);
}

void check_saved(const std::string& run_dir) {
  CHECK_THAT(read_file(run_dir + "/log.txt"),
             Catch::Contains("all is saved, continue with --resume auto"));
  CHECK(std::filesystem::exists(run_dir + "/checkpoints/latest"));
}

void extract_digits(const std::string& codes_dir, int64_t num_images) {
  const ProcessResult result = run_vgen(
      {"extract", golden("vq_ema/ckpt.pt"), project_path("data/digits.tar.gz"), "--split", "val",
       "--image-size", "8", "--crops", "center_flip", "--limit", std::to_string(num_images),
       "--threads", "1", "--device", "cpu", "--out", codes_dir});
  CAPTURE(result.err);
  REQUIRE(result.exit_code == 0);
}

std::vector<std::string> rank_environment(size_t rank, int64_t world_size, int64_t port) {
  return {str_cat("RANK=", rank),       str_cat("WORLD_SIZE=", world_size),
          str_cat("LOCAL_RANK=", rank), str_cat("LOCAL_WORLD_SIZE=", world_size),
          "MASTER_ADDR=127.0.0.1",      str_cat("MASTER_PORT=", port)};
}

Ranks::Ranks(int64_t world_size, size_t started, const std::vector<std::string>& arguments,
             const OneRank& odd) {
  const int64_t port = free_port();
  for (size_t rank = 0; rank < started; ++rank) {
    std::string program = vgen_executable();
    std::vector<std::string> own = arguments;
    if (rank == odd.rank && !odd.config.empty()) own[1] = odd.config;
    if (rank == odd.rank && !odd.assignment.empty()) {
      own.insert(own.end(), {"--set", odd.assignment});
    }
    if (rank == odd.rank && !odd.shell.empty()) {
      own.insert(own.begin(), {"-c", str_cat(odd.shell, "; exec \"$0\" \"$@\""), program});
      program = "bash";
    }
    processes_.push_back(
        std::make_unique<Process>(program, own, rank_environment(rank, world_size, port)));
  }
}

std::vector<ProcessResult> Ranks::wait() {
  std::vector<ProcessResult> results;
  for (auto& process : processes_) results.push_back(process->wait());
  return results;
}

void Ranks::finish() {
  for (const auto& result : wait()) {
    CAPTURE(result.err);
    CHECK(result.exit_code == 0);
  }
}

std::string step_folder(const std::string& run_dir, int64_t step) {
  return str_cat(run_dir, "/checkpoints/step_000000", step);
}

std::map<int64_t, double> metric(const std::string& run_dir, const std::string& name) {
  std::map<int64_t, double> values;
  for (const std::string& line : split(read_file(run_dir + "/metrics.jsonl"), '\n')) {
    const std::string value = text_after(line, str_cat("\"", name, "\":"));
    if (!value.empty()) values[std::stoll(text_after(line, "\"step\":"))] = std::stod(value);
  }
  return values;
}

std::map<int64_t, double> losses(const std::string& run_dir) {
  return metric(run_dir, "train/gen_loss");
}

void check_losses(const std::map<int64_t, double>& found,
                  const std::map<int64_t, double>& expected) {
  REQUIRE(found.size() == expected.size());
  for (const auto& [step, loss] : expected) {
    INFO("step " << step);
    REQUIRE(found.contains(step));
    CHECK(found.at(step) == Approx(loss).epsilon(1e-5));
  }
}

bool wait_for(const std::string& path) {
  for (int i = 0; i < 1200 && !std::filesystem::exists(path); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return std::filesystem::exists(path);
}

bool wait_for_step(const std::string& run_dir, int64_t step) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  const std::string path = run_dir + "/metrics.jsonl";
  while (std::chrono::steady_clock::now() < end) {
    if (std::filesystem::exists(path) && metric(run_dir, "train/lr").contains(step)) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

}  // namespace vgen::test
