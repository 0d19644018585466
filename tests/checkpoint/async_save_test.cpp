// Saving in the background.

#include <pthread.h>
#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <future>
#include <system_error>
#include <thread>

#include "checkpoint/parts_support.h"
#include "support/support.h"
#include "vgen/checkpoint/load.h"
#include "vgen/checkpoint/store.h"

using namespace vgen;
using namespace vgen::checkpoint;
namespace fs = std::filesystem;

TEST_CASE("async: the same bytes as in the foreground, while tensors go on changing",
          "[checkpoint]") {
  const test::TempDir run, other;
  CheckpointStore(other / "checkpoints", {}).save(snapshot_of(1, parameters(1)));
  CheckpointStore store(run / "checkpoints", {.async_save = true});
  std::promise<void> may_write;
  std::shared_future<void> gate = may_write.get_future().share();
  store.before_write = [gate](std::string_view name) {
    if (name == kFile) gate.wait();
  };
  NamedTensors tensors = parameters(1);
  store.save(snapshot_of(1, tensors));
  for (NamedTensor& item : tensors) item.tensor.fill_(-1);
  store.poll();  // waits for nothing
  CHECK_FALSE(check_checkpoint(run / "checkpoints/step_0000001").problem.empty());
  may_write.set_value();
  store.save(snapshot_of(2, parameters(2)));  // waits for the first, takes its memory
  CHECK(check_checkpoint(run / "checkpoints/step_0000001").problem.empty());
  store.finish();
  for (const std::string name : {"model.safetensors", "state.json", "index.json"}) {
    CHECK(test::read_file(run / ("checkpoints/step_0000001/" + name)) ==
          test::read_file(other / ("checkpoints/step_0000001/" + name)));
  }
  NamedTensors loaded = zeros_like(parameters());
  load_file(find_checkpoint(run.path()), kFile, loaded, {.optional = {"count"}});
  CHECK(are_equal(loaded, parameters(2)));
}

TEST_CASE("async: an error is that of the next call, with the step", "[checkpoint]") {
  const test::TempDir run;
  CheckpointStore store(run / "checkpoints", {.async_save = true});
  store.save(snapshot_of(1, parameters(1)));
  store.finish();
  store.before_write = [](std::string_view name) {
    require(name != "index.json", ErrorCode::kUnavailable, "no space left");
  };
  store.save(snapshot_of(2, parameters(2)));
  CHECK(test::error_of([&] { store.save(snapshot_of(3, parameters(3))); }) ==
        "checkpoint of step 2 not saved: no space left");
  CHECK_FALSE(fs::exists(run / "checkpoints/step_0000002"));
  CHECK_FALSE(fs::exists(run / "checkpoints/step_0000003"));
  CHECK_NOTHROW(store.finish());
  CHECK(find_checkpoint(run.path()).step == 1);
}

TEST_CASE("async: whole files are valid without a further call", "[checkpoint]") {
  const test::TempDir run;
  { CheckpointStore(run / "checkpoints", {.async_save = true}).save(snapshot_of(1, parameters())); }
  CHECK(find_checkpoint(run.path()).step == 1);
}

TEST_CASE("async: shards are a checkpoint once all are there and a call has found them",
          "[checkpoint][dist]") {
  const test::TempDir run;
  save_parts(run.path(), 2, 1);
  const std::string path = run / "checkpoints/step_0000002";
  std::promise<void> may_write;
  std::shared_future<void> gate = may_write.get_future().share();
  const auto seen = texts_of_ranks(2, [&](dist::Group& group) {
    CheckpointStore store(run / "checkpoints", {.async_save = true}, &group);
    store.before_write = [&](std::string_view name) {
      if (name.starts_with("model-00002")) gate.wait();
    };
    store.save(parts_snapshot(2, group));
    store.poll();
    std::string text = fs::exists(path + "/index.json") ? "too early" : "open";
    group.barrier();
    if (group.rank() == 0) may_write.set_value();
    while (!fs::exists(path + "/index.json")) store.poll();
    store.save(parts_snapshot(3, group));
    store.finish();
    return text;
  });
  CHECK(seen == std::vector<std::string>(2, "open"));
  CHECK(check_checkpoint(path).problem.empty());
  CHECK(find_checkpoint(run.path()).step == 3);
  const NamedTensors expected = parameters(3);
  NamedTensors loaded = zeros_like(expected);
  load_file(find_checkpoint(run.path()), kFile, loaded, {.optional = {"count"}});
  CHECK(are_equal(loaded, expected));
}

/// While this lives, the system refuses new threads: their stacks would not fit into memory.
class NoNewThreads {
 public:
  NoNewThreads() {
    pthread_getattr_default_np(&before_);
    pthread_attr_t huge;
    pthread_attr_init(&huge);
    pthread_attr_setstacksize(&huge, size_t{1} << 56);
    pthread_setattr_default_np(&huge);
    pthread_attr_destroy(&huge);
  }
  ~NoNewThreads() {
    pthread_setattr_default_np(&before_);
    pthread_attr_destroy(&before_);
  }
  NoNewThreads(const NoNewThreads&) = delete;
  NoNewThreads& operator=(const NoNewThreads&) = delete;

 private:
  pthread_attr_t before_;
};

TEST_CASE("async: without a thread it saves in the foreground", "[checkpoint]") {
  const test::TempDir run;
  CheckpointStore store(run / "checkpoints", {.async_save = true});
  {
    const NoNewThreads none;
    CHECK_THROWS_AS(std::thread([] {}), std::system_error);
    store.save(snapshot_of(1, parameters(1)));
  }
  CHECK(check_checkpoint(run / "checkpoints/step_0000001").problem.empty());
  store.save(snapshot_of(2, parameters(2)));
  store.finish();
  CHECK(find_checkpoint(run.path()).step == 2);
}
