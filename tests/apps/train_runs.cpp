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
                                         const std::string& strategy) {
  return {"train",     project_path("tests/apps/tiny-tokenizer.yaml"),
          "--run-dir", run_dir,
          "--resume",  "auto",
          "--set",     str_cat("steps=", steps),
          "--set",     str_cat("parallel.strategy=", strategy),
          "--set",     "parallel.timeout_s=30",
          "--set",     str_cat("data.train.path=", project_path("data/digits.tar.gz"))};
}

std::map<int64_t, double> losses(const std::string& run_dir) {
  std::map<int64_t, double> losses;
  for (const std::string& line : split(read_file(run_dir + "/metrics.jsonl"), '\n')) {
    const std::string loss = text_after(line, "\"train/gen_loss\":");
    if (!loss.empty()) losses[std::stoll(text_after(line, "\"step\":"))] = std::stod(loss);
  }
  return losses;
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

}  // namespace vgen::test
