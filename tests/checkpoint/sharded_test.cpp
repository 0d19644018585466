// Checkpoints of several ranks: parts of tensors.

#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>
#include <mutex>

#include "checkpoint/parts_support.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/checkpoint/load.h"
#include "vgen/checkpoint/store.h"

using namespace vgen;
using namespace vgen::checkpoint;
using Catch::Matchers::Contains;
using test::files_in;
namespace fs = std::filesystem;

namespace {

void flip_last_bit(const std::string& path) {
  std::string bytes = test::read_file(path);
  bytes.back() ^= 1;
  test::write_file(path, bytes);
}

void replace_in_file(const std::string& path, const std::string& before, const std::string& now) {
  std::string text = test::read_file(path);
  REQUIRE(text.find(before) != std::string::npos);
  test::write_file(path, text.replace(text.find(before), before.size(), now));
}

// As messages name a rank of this process.
std::string rank_name(int64_t rank) {
  char host[256] = {};
  gethostname(host, sizeof(host) - 1);
  return str_cat("rank ", rank, " (", static_cast<const char*>(host), " process ", getpid(), ")");
}

}  // namespace

TEST_CASE("sharded: what four ranks save any number of ranks loads, bit for bit",
          "[checkpoint][dist]") {
  const Layout layout = GENERATE(Layout::kFlat, Layout::kEach);
  const test::TempDir run;
  save_parts(run.path(), 4, 3, layout);
  const CheckpointInfo info = find_checkpoint(run.path());
  CHECK(files_in(info.path) ==
        std::vector<std::string>{
            "index.json", "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors",
            "model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors", "state.json"});
  const NamedTensors whole = parameters(3);
  for (int64_t num_ranks = 1; num_ranks <= 4; ++num_ranks) {
    for (int64_t rank = 0; rank < num_ranks; ++rank) {
      for (const Layout other : {Layout::kFlat, Layout::kEach}) {
        INFO("rank " << rank << " of " << num_ranks);
        const NamedTensors expected = parts_of(whole, rank, num_ranks, other);
        NamedTensors loaded = zeros_like(expected);
        load_file(info, kFile, loaded, {.optional = {"count"}});
        CHECK(are_equal(loaded, expected));
      }
    }
  }
  NamedTensors loaded = zeros_like(whole);
  loaded.push_back({"count", torch::zeros({}, torch::kLong)});
  load_file(info, kFile, loaded);
  CHECK(loaded.back().tensor.item<int64_t>() == 3);
  loaded.pop_back();
  CHECK(are_equal(loaded, whole));
}

TEST_CASE("sharded: other readers see whole tensors", "[checkpoint][dist]") {
  const test::TempDir run;
  save_parts(run.path(), 3, 5);
  const CheckpointInfo info = find_checkpoint(run.path());
  for (const io::StateDict& state :
       {io::load_state_dict(info.path + "/model.safetensors"), io::load_state_dict(info.path),
        io::load_state_dict(info.path + "/model-00002-of-00003.safetensors")}) {
    CHECK(state.tensors.size() == 7);
    CHECK(state.source == info.path + "/model.safetensors");
    CHECK(state.metadata == io::Metadata{{"format", "pt"}});
    NamedTensors loaded = zeros_like(parameters());
    load_into(loaded, state, {.optional = {"count"}});
    CHECK(are_equal(loaded, parameters(5)));
  }
  CHECK(read_state(info).get_int("step") == 5);
}

TEST_CASE("sharded: a whole checkpoint is loaded as parts", "[checkpoint]") {
  const test::TempDir run;
  CheckpointStore(run / "checkpoints", {}).save(snapshot_of(1, parameters(1)));
  const CheckpointInfo info = find_checkpoint(run.path());
  CHECK(files_in(info.path) ==
        std::vector<std::string>{"index.json", "model.safetensors", "state.json"});
  const io::StateDict state = io::load_state_dict(info.path);
  for (int64_t rank = 0; rank < 3; ++rank) {
    const NamedTensors expected = parts_of(parameters(1), rank, 3);
    NamedTensors loaded = zeros_like(expected);
    load_file(info, kFile, loaded, {.optional = {"count"}});
    CHECK(are_equal(loaded, expected));
    loaded = zeros_like(expected);
    load_into(loaded, state, {.optional = {"count"}});
    CHECK(are_equal(loaded, expected));
  }
}

TEST_CASE("sharded: values are converted to the dtype and laid out as the target is",
          "[checkpoint][dist]") {
  const test::TempDir run;
  test::run_ranks(2, [&](GroupPtr group) {
    const NamedTensors whole{{"w", torch::arange(24).to(torch::kBFloat16).reshape({1, 2, 3, 4})}};
    CheckpointStore(run / "checkpoints", {}, group.get())
        .save(snapshot_of(1, parts_of(whole, group->rank(), 2)));
  });
  const CheckpointInfo info = find_checkpoint(run.path());
  const auto expected = torch::arange(24, torch::kFloat32).reshape({1, 2, 3, 4});
  const auto target = torch::zeros({1, 2, 3, 4}).contiguous(torch::MemoryFormat::ChannelsLast);
  load_file(info, kFile, {{"w", target}}, {.optional = {"count"}});
  CHECK_THAT(target, test::AllClose(expected, test::kExact));
  CHECK(target.is_contiguous(torch::MemoryFormat::ChannelsLast));
  NamedTensor part{"w", torch::zeros({10}), {1, 2, 3, 4}, 7};
  load_file(info, kFile, {part}, {.optional = {"count"}});
  CHECK_THAT(part.tensor, test::AllClose(expected.view(-1).slice(0, 7, 17), test::kExact));
}

TEST_CASE("sharded: the index tells the whole shapes and where elements lie",
          "[checkpoint][dist]") {
  const test::TempDir run;
  save_parts(run.path(), 2, 1, Layout::kEach);
  const std::string path = run / "checkpoints/step_0000001";
  const io::Json index = io::parse_json(test::read_file(path + "/index.json"));
  CHECK(index.get_object("files").members.size() == 3);
  const io::Json& tensors = index.get_object("tensors").get_object(kFile);
  CHECK(tensors.members.size() == 7);
  const io::Json& half = tensors.get_object("half");
  CHECK(half.get_string("dtype") == "bfloat16");
  CHECK(io::dump_json(half.get_array("shape")) == "[5,3]");
  CHECK(io::dump_json(half.get_array("slices")) ==
        R"([["model-00001-of-00002.safetensors",0,8],["model-00002-of-00002.safetensors",8,7]])");
  CHECK(io::dump_json(tensors.get_object("one").get_array("slices")) ==
        R"([["model-00001-of-00002.safetensors",0,1]])");
}

TEST_CASE("sharded: files without parts stay whole, copies are written once",
          "[checkpoint][dist]") {
  const test::TempDir run;
  test::run_ranks(4, [&](GroupPtr group) {  // two copies, each of two ranks
    Snapshot snapshot = snapshot_of(1, parts_of(parameters(1), group->rank() % 2, 2));
    snapshot.files.push_back({"ema.safetensors", parameters(2)});
    CheckpointStore(run / "checkpoints", {}, group.get()).save(snapshot);
  });
  const CheckpointInfo info = find_checkpoint(run.path());
  CHECK(files_in(info.path) == std::vector<std::string>{"ema.safetensors", "index.json",
                                                        "model-00001-of-00002.safetensors",
                                                        "model-00002-of-00002.safetensors",
                                                        "state.json"});
  NamedTensors loaded = zeros_like(parameters());
  load_file(info, kFile, loaded, {.optional = {"count"}});
  CHECK(are_equal(loaded, parameters(1)));
}

TEST_CASE("sharded: ranks that are whole save what one process saves", "[checkpoint][dist]") {
  const test::TempDir run, alone;
  const auto messages = texts_of_ranks(3, [&](dist::Group& group) {
    return message_of([&] {
      CheckpointStore(run / "checkpoints", {}, &group).save(snapshot_of(4, parameters(4)));
      // It is valid for everyone who has returned.
      require(check_checkpoint(run / "checkpoints/step_0000004").problem.empty(),
              ErrorCode::kInternal, "not valid");
    });
  });
  CHECK(messages == std::vector<std::string>(3));
  CheckpointStore(alone / "checkpoints", {}).save(snapshot_of(4, parameters(4)));
  for (const std::string name : {"model.safetensors", "state.json", "index.json"}) {
    CHECK(test::read_file(run / ("checkpoints/step_0000004/" + name)) ==
          test::read_file(alone / ("checkpoints/step_0000004/" + name)));
  }
}

TEST_CASE("sharded: a load is as strict as that of one file", "[checkpoint][dist]") {
  const test::TempDir run;
  save_parts(run.path(), 2, 1);
  const CheckpointInfo info = find_checkpoint(run.path());
  NamedTensors targets = zeros_like(parts_of(parameters(), 0, 2));
  targets[0].name = "uno";
  targets[1].whole_sizes = {4};
  CHECK(test::error_of([&] { load_file(info, kFile, targets); }) ==
        info.path +
            "/model.safetensors: the tensors are not those of this model: 1 missing: uno; "
            "2 unexpected: one, count; 1 do not fit: three is [3], expected [4]; check the model "
            "section of the config, or the key that is read");
  CHECK(targets[2].tensor.sum().item<float>() == 0);  // nothing was written
  CHECK(test::error_of([&] { load_file(info, "ema.safetensors", targets); }) ==
        info.path + ": holds no ema.safetensors");
  // A part without elements needs its name.
  const NamedTensor empty{"matrix", torch::zeros({0}), {9, 11}, 99};
  const LoadOptions others{.optional = {"one", "three", "seven", "half", "none", "count"}};
  CHECK_NOTHROW(load_file(info, kFile, {empty}, others));
  const NamedTensor nobody{"nobody", torch::zeros({0}), {9, 11}, 0};
  CHECK_THAT(test::error_of([&] { load_file(info, kFile, {nobody}); }),
             Contains("1 missing: nobody"));
}

TEST_CASE("sharded: a damaged or missing shard is named and the checkpoint before it used",
          "[checkpoint][dist]") {
  const test::TempDir run;
  for (int64_t step = 1; step <= 4; ++step) {
    test::run_ranks(2, [&](GroupPtr group) {
      CheckpointStore(run / "checkpoints", {.keep_last = 0}, group.get())
          .save(parts_snapshot(step, *group));
    });
  }
  const auto shard = [&](int64_t step, const std::string& name) {
    return run / ("checkpoints/" + step_name(step) + "/" + name);
  };
  flip_last_bit(shard(4, "model-00002-of-00002.safetensors"));
  fs::resize_file(shard(3, "model-00001-of-00002.safetensors"), 77);
  fs::remove(shard(2, "model-00002-of-00002.safetensors"));
  const auto problem = [&](int64_t step) { return check_checkpoint(shard(step, "")).problem; };
  CHECK_THAT(problem(4), Contains("model-00002-of-00002.safetensors has the checksum "));
  CHECK_THAT(problem(3), Contains("model-00001-of-00002.safetensors has 77 bytes, expected "));
  CHECK(problem(2) == "model-00002-of-00002.safetensors is missing");
  CHECK(find_checkpoint(run.path()).step == 1);

  const auto found = texts_of_ranks(3, [&](dist::Group& group) {
    const CheckpointInfo info = find_checkpoint(run.path(), group);
    return str_cat(info.path, " ", info.step);
  });
  CHECK(found == std::vector<std::string>(3, run / "checkpoints/step_0000001 1"));
}

TEST_CASE("sharded: every rank hears why there is no checkpoint", "[checkpoint][dist]") {
  const test::TempDir run;
  const auto messages = texts_of_ranks(2, [&](dist::Group& group) {
    return message_of([&] { find_checkpoint(run / "nothing", group); });
  });
  CHECK(messages ==
        std::vector<std::string>(2, rank_name(0) + ": " + (run / "nothing") +
                                        ": no such folder; expected a run folder or a checkpoint "
                                        "folder"));
}

TEST_CASE("sharded: an index with gaps, overlaps or other shards is refused",
          "[checkpoint][dist]") {
  const test::TempDir run;
  save_parts(run.path(), 2, 1, Layout::kEach);
  const std::string path = run / "checkpoints/step_0000001";
  const std::string index = without_checksum(test::read_file(path + "/index.json"));
  const auto problem = [&](const std::string& before, const std::string& now) {
    test::write_file(path + "/index.json", index);
    replace_in_file(path + "/index.json", before, now);
    return check_checkpoint(path).problem;
  };
  const std::string first = R"("model-00001-of-00002.safetensors", 0, 8])";
  REQUIRE(index.find(first) != std::string::npos);
  CHECK(problem(first, R"("model-00001-of-00002.safetensors", 0, 6])") ==
        "index.json: model.safetensors: tensor 'half': no file holds elements 6 to "
        "7 of 15");
  CHECK_THAT(problem(first, R"("model-00001-of-00002.safetensors", 0, 9])"),
             Contains("tensor 'half'") && Contains("hold element 8 of 15"));
  CHECK_THAT(problem(first, R"("other.safetensors", 0, 8])"),
             Contains("lies in 'other.safetensors', which is not listed"));
  CHECK_THAT(problem(R"("dtype": "bfloat16")", R"("dtype": "bfloat61")"),
             Contains("tensor 'half'") && Contains("'bfloat61', which is unknown"));
  CheckpointInfo info;
  info.path = path;
  NamedTensors targets = zeros_like(parameters());
  CHECK_THAT(test::error_of([&] { load_file(info, kFile, targets); }),
             Contains(path + ": index.json: "));
  // Shards that are not what the index says.
  CHECK(problem(R"("dtype": "bfloat16")", R"("dtype": "float16")") == "");
  CHECK_THAT(test::error_of([&] { load_file(info, kFile, targets, {.optional = {"count"}}); }),
             Contains("model-00001-of-00002.safetensors: tensor 'half' has 8 elements of bfloat16, "
                      "expected 8 of float16"));
}

TEST_CASE("sharded: a rank that cannot write fails all, and leaves what was there",
          "[checkpoint][dist]") {
  const test::TempDir run;
  const bool is_async = GENERATE(false, true);
  save_parts(run.path(), 3, 1);
  const auto messages = texts_of_ranks(3, [&](dist::Group& group) {
    CheckpointStore store(run / "checkpoints", {.async_save = is_async}, &group);
    store.before_write = [&](std::string_view name) {
      require(group.rank() != 1 || name == "again", ErrorCode::kUnavailable, name,
              ": no space left");
    };
    std::string message = message_of([&] {
      store.save(parts_snapshot(2, group));
      store.finish();
    });
    store.before_write = {};
    store.save(parts_snapshot(3, group));  // the store goes on
    store.finish();
    return message;
  });
  CHECK(messages ==
        std::vector<std::string>(3, "checkpoint of step 2 not saved: " + rank_name(1) +
                                        ": model-00002-of-00003.safetensors: no space left"));
  CHECK_FALSE(fs::exists(run / "checkpoints/step_0000002"));
  CHECK(check_checkpoint(run / "checkpoints/step_0000001").problem.empty());
  CHECK(find_checkpoint(run.path()).step == 3);
}

TEST_CASE("sharded: a full disk names the rank and its file", "[checkpoint][dist]") {
  const test::TempDir run;
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit limit{.rlim_cur = 1 << 20, .rlim_max = old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &limit);
  const auto messages = texts_of_ranks(2, [&](dist::Group& group) {
    const NamedTensors whole{{"big", torch::zeros({1 << 20})}};
    const int64_t cut = 1 << 10;  // the second rank has nearly all
    const bool is_first = group.rank() == 0;
    NamedTensors part{part_of(whole[0], is_first ? 0 : cut, is_first ? cut : 1 << 20)};
    CheckpointStore store(run / "checkpoints", {}, &group);
    return message_of([&] { store.save(snapshot_of(1, part)); });
  });
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  CHECK(messages[0] == messages[1]);
  CHECK_THAT(messages[0], Contains("checkpoint of step 1 not saved: " + rank_name(1) + ": ") &&
                              Contains("model-00002-of-00002.safetensors: cannot write: "));
  CHECK_FALSE(fs::exists(run / "checkpoints/step_0000001"));
}

TEST_CASE("sharded: ranks with other tensors, or with parts that leave gaps, are told",
          "[checkpoint][dist]") {
  const test::TempDir run;
  const auto save = [&](const std::function<void(NamedTensors&, int64_t rank)>& change) {
    const auto messages = texts_of_ranks(2, [&](dist::Group& group) {
      NamedTensors parts = parts_of(parameters(), group.rank(), 2);
      change(parts, group.rank());
      CheckpointStore store(run / "checkpoints", {}, &group);
      return message_of([&] { store.save(snapshot_of(1, parts)); });
    });
    CHECK(messages[0] == messages[1]);
    CHECK_FALSE(fs::exists(run / "checkpoints/step_0000001"));
    return messages[0];
  };
  CHECK(save([](NamedTensors& parts, int64_t rank) {
          if (rank == 1) parts[0].name = "uno";
        }) == "checkpoint of step 1 not saved: rank 1 has other tensors to save than rank 0");
  CHECK_THAT(save([](NamedTensors& parts, int64_t rank) {
               if (rank == 1) parts[4].tensor = parts[4].tensor.slice(0, 0, 50);
             }),
             Contains("model.safetensors: the parts of the ranks do not fit: tensor 'matrix': no "
                      "file holds elements "));
}

// A process of its own, which the case below starts: threads do not survive a fork.
TEST_CASE("sharded: the process that is killed", "[.child]") {
  const char* folder = std::getenv("VGEN_TEST_FOLDER");
  if (folder == nullptr) return;  // only the case below has use for it
  const std::string point = std::getenv("VGEN_TEST_POINT");
  const bool is_async = std::string(std::getenv("VGEN_TEST_ASYNC")) == "1";
  save_parts(folder, 2, 1);
  test::run_ranks(2, [&](GroupPtr group) {
    CheckpointStore store(str_cat(folder, "/checkpoints"), {.keep_last = 1, .async_save = is_async},
                          group.get());
    store.before_write = [&](std::string_view name) {
      if (name == point) kill(getpid(), SIGKILL);
    };
    store.save(parts_snapshot(2, *group));
    store.finish();
  });
}

TEST_CASE("sharded: processes killed at any point of saving leave the checkpoint before",
          "[checkpoint][dist]") {
  const bool is_async = GENERATE(false, true);
  for (const std::string point :
       {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "state.json",
        "index.json", "latest", "rotate"}) {
    INFO("killed before " << point);
    const test::TempDir run;
    setenv("VGEN_TEST_FOLDER", run.path().c_str(), 1);
    setenv("VGEN_TEST_POINT", point.c_str(), 1);
    setenv("VGEN_TEST_ASYNC", is_async ? "1" : "0", 1);
    const pid_t child = fork();
    if (child == 0) {
      execl("/proc/self/exe", "test_checkpoint", "[.child]", nullptr);
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    const bool is_complete = point == "latest" || point == "rotate";
    CHECK(find_checkpoint(run.path()).step == (is_complete ? 2 : 1));
    save_parts(run.path(), 3, 2);  // the next run overwrites what is unfinished
    CHECK(find_checkpoint(run.path()).step == 2);
    CHECK(files_in(run / "checkpoints/step_0000002").size() == (is_complete ? 4 : 5));
  }
}
