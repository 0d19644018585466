#include "vgen/checkpoint/store.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>
#include <limits>

#include "support/support.h"
#include "support/torch_support.h"

using namespace vgen;
using namespace vgen::checkpoint;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

Snapshot snapshot_of(int64_t step, std::map<std::string, double> metrics = {}) {
  io::Json state = io::Json::object();
  state.set("step", io::Json::number(step));
  return {.step = step,
          .files = {{"model.safetensors", {{"w", torch::full({256}, step)}}},
                    {"optimizer.safetensors", {{"m", torch::full({3}, -step)}}}},
          .state = std::move(state),
          .metrics = std::move(metrics)};
}

std::vector<int64_t> steps_of(const CheckpointStore& store) {
  std::vector<int64_t> steps;
  for (const auto& info : store.list()) {
    if (info.problem.empty()) steps.push_back(info.step);
  }
  return steps;
}

ErrorCode code_of_finding(const std::string& path) {
  try {
    find_checkpoint(path);
  } catch (const Error& error) {
    return error.code();
  }
  FAIL(path << ": an error was expected");
  return ErrorCode::kInternal;
}

}  // namespace

TEST_CASE("store: what is saved is found, whole", "[checkpoint]") {
  const test::TempDir run;
  CheckpointStore store(run / "checkpoints", {});
  store.save(snapshot_of(7, {{"psnr", 20.5}}));
  CHECK(test::read_file(run / "checkpoints/latest") == "step_0000007\n");
  for (const auto& path : {run.path(), run / "checkpoints", run / "checkpoints/step_0000007",
                           run / "checkpoints/step_0000007/"}) {
    const CheckpointInfo info = find_checkpoint(path);
    CHECK(info.step == 7);
    CHECK(info.metrics.at("psnr") == 20.5);
    CHECK(read_state(info).get_int("step") == 7);
    const auto weights = io::load_state_dict(info.path + "/model.safetensors");
    CHECK(as_tensor(*weights.find("w"))[255].item<float>() == 7);
  }
}

TEST_CASE("store: the newest valid checkpoint is taken, the others are named", "[checkpoint]") {
  const test::TempDir run;
  CheckpointStore store(run / "checkpoints", {.keep_last = 0});
  for (int64_t step = 1; step <= 5; ++step) store.save(snapshot_of(step));
  const auto folder = [&](int64_t step) { return run / ("checkpoints/" + step_name(step)); };

  fs::remove(folder(5) + "/index.json");
  CHECK(check_checkpoint(folder(5)).problem == "no index.json: the writing was not finished");
  fs::resize_file(folder(4) + "/model.safetensors", 100);
  CHECK(check_checkpoint(folder(4)).problem == "model.safetensors has 100 bytes, expected 2120");
  auto bytes = test::read_file(folder(3) + "/model.safetensors");
  bytes.back() ^= 1;
  test::write_file(folder(3) + "/model.safetensors", bytes);
  CHECK_THAT(check_checkpoint(folder(3)).problem,
             Contains("model.safetensors has the checksum ") && Contains(", expected "));
  fs::remove(folder(2) + "/optimizer.safetensors");
  CHECK(check_checkpoint(folder(2)).problem == "optimizer.safetensors is missing");
  CHECK(find_checkpoint(run.path()).step == 1);

  test::write_file(folder(1) + "/index.json", "{\"format\": ");
  CHECK_THAT(test::error_of([&] { find_checkpoint(run.path()); }),
             Contains("holds no valid checkpoint: step_0000005: no index.json: the writing was not "
                      "finished; step_0000004: model.safetensors has 100 bytes, expected 2120; "
                      "step_0000003: ") &&
                 Contains("; step_0000001: ") &&
                 Contains("; bring one of them back, or move " + run / "checkpoints" +
                          " away to start over"));
  CHECK(code_of_finding(run.path()) == ErrorCode::kDataCorrupt);
  CHECK_THAT(test::error_of([&] { find_checkpoint(folder(2)); }),
             Contains("optimizer.safetensors is missing"));
  CHECK_THAT(test::error_of([&] { find_checkpoint(run / "nothing"); }),
             Contains("no such folder; expected a run folder or a checkpoint folder"));
}

TEST_CASE("store: where no writing was ever finished there is no checkpoint", "[checkpoint]") {
  const test::TempDir run;
  test::write_file(run / "config.yaml", "steps: 3\n");
  CHECK(code_of_finding(run.path()) == ErrorCode::kNotFound);  // not even a folder for them
  fs::create_directories(run / "checkpoints/step_0000001");
  test::write_file(run / "checkpoints/step_0000001/model.safetensors", "half");
  CHECK(code_of_finding(run.path()) == ErrorCode::kNotFound);
  CHECK_THAT(test::error_of([&] { find_checkpoint(run.path()); }),
             Contains("holds no valid checkpoint (the log tells why of each)"));
  // The next run takes the place of what is unfinished.
  CheckpointStore(run / "checkpoints", {}).save(snapshot_of(1));
  CHECK(find_checkpoint(run.path()).step == 1);
}

TEST_CASE("store: a folder that cannot be read is not an empty one", "[checkpoint]") {
  const test::TempDir run;
  test::write_file(run / "config.yaml", "steps: 3\n");
  fs::create_symlink("checkpoints", run / "checkpoints");  // leads to itself
  CHECK(code_of_finding(run.path()) == ErrorCode::kUnavailable);
  CHECK_THAT(test::error_of([&] { find_checkpoint(run.path()); }),
             Contains(run / "checkpoints: cannot be looked at: Too many levels of symbolic links"));
  fs::remove(run / "checkpoints");
  CheckpointStore store(run / "checkpoints", {});
  store.save(snapshot_of(1));
  fs::rename(run / "checkpoints", run / "elsewhere");
  CHECK_THAT(test::error_of([&] { store.list(); }),
             Contains(run / "checkpoints: cannot be listed: No such file"));
}

TEST_CASE("store: an index that names files elsewhere is refused", "[checkpoint]") {
  const test::TempDir folder;
  test::write_file(folder / "index.json",
                   R"({"format": "vgen-checkpoint-1", "step": 1, "metrics": {},
                       "files": {"../x": {"size_bytes": 1, "crc32c": "00000000"}}})");
  CHECK(check_checkpoint(folder.path()).problem ==
        "index.json names '../x', which is no plain file name");
}

TEST_CASE("store: the last and the best are kept", "[checkpoint]") {
  const test::TempDir run;
  CheckpointStore store(
      run / "checkpoints",
      {.keep_last = 2, .keep_best = 1, .best_metric = "psnr", .best_mode = "max"});
  store.save(snapshot_of(1, {{"psnr", 10}}));
  store.save(snapshot_of(2, {{"psnr", 30}}));
  store.save(snapshot_of(3, {{"psnr", std::numeric_limits<double>::quiet_NaN()}}));
  store.save(snapshot_of(4));
  store.save(snapshot_of(5, {{"psnr", 20}}));
  CHECK(steps_of(store) == std::vector<int64_t>{5, 4, 2});

  CheckpointStore lowest(
      run / "checkpoints",
      {.keep_last = 1, .keep_best = 1, .best_metric = "psnr", .best_mode = "min"});
  lowest.save(snapshot_of(6, {{"psnr", 25}}));
  CHECK(steps_of(lowest) == std::vector<int64_t>{6, 5});
}

TEST_CASE("store: a process killed at any point of saving leaves the checkpoint before",
          "[checkpoint]") {
  for (const std::string point : {"model.safetensors", "optimizer.safetensors", "state.json",
                                  "index.json", "latest", "rotate"}) {
    INFO("killed before " << point);
    const test::TempDir run;
    CheckpointStore store(run / "checkpoints", {.keep_last = 1});
    store.save(snapshot_of(1));
    const Snapshot next = snapshot_of(2);
    const pid_t child = fork();
    if (child == 0) {
      store.before_write = [&](std::string_view name) {
        if (name == point) kill(getpid(), SIGKILL);
      };
      store.save(next);
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    const bool is_complete = point == "latest" || point == "rotate";
    CHECK(find_checkpoint(run.path()).step == (is_complete ? 2 : 1));
    store.save(next);  // the next run overwrites what is unfinished
    CHECK(find_checkpoint(run.path()).step == 2);
    CHECK(steps_of(store) == std::vector<int64_t>{2});
  }
}

TEST_CASE("store: a full disk leaves the checkpoint before and nothing else", "[checkpoint]") {
  const test::TempDir run;
  CheckpointStore store(run / "checkpoints", {});
  store.save(snapshot_of(1));
  Snapshot big = snapshot_of(2);
  big.files[1].tensors.push_back({"big", torch::zeros({1 << 20})});

  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit limit{.rlim_cur = 1 << 20, .rlim_max = old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &limit);
  const std::string message = test::error_of([&] { store.save(big); });
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);

  CHECK_THAT(message,
             Contains("checkpoint of step 2 not saved: ") && Contains("optimizer.safetensors"));
  CHECK_FALSE(fs::exists(run / "checkpoints/step_0000002"));
  CHECK(find_checkpoint(run.path()).step == 1);
}
