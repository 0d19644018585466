// What index.json says, against the files beside it and against what other ranks see.

#include "vgen/checkpoint/detail/index.h"

#include <torch/torch.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <functional>

#include "checkpoint/parts_support.h"
#include "support/support.h"
#include "vgen/checkpoint/load.h"
#include "vgen/io/safetensors.h"

using namespace vgen;
using namespace vgen::checkpoint;
using Catch::Matchers::Contains;
using test::files_in;
using vgen::checkpoint::detail::dump_index;
using vgen::checkpoint::detail::Index;
using vgen::checkpoint::detail::parse_index;
namespace fs = std::filesystem;

namespace {

constexpr const char* kNotThere =
    ": is not there as rank 0 has it; give all ranks one --run-dir, on a file system that all "
    "hosts share";

/// One tensor of four elements in two shards.
Index small_index() {
  Index index{.step = 12, .metrics = {{"psnr", 20.5}}, .files = io::Json::object(), .tensors = {}};
  for (const std::string name :
       {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "state.json"}) {
    io::Json& entry = index.files.set(name, io::Json::object());
    entry.set("size_bytes", io::Json::number(int64_t{104}));
    entry.set("crc32c", io::Json::string("01234567"));
  }
  index.tensors[kFile] = {{.name = "w",
                           .dtype = io::Dtype::kFloat32,
                           .shape = {4},
                           .slices = {{"model-00001-of-00002.safetensors", 0, 2},
                                      {"model-00002-of-00002.safetensors", 2, 2}}}};
  return index;
}

/// What is wrong with a small index that was changed before it was written.
std::string problem_of(const std::function<void(Index&)>& change) {
  Index index = small_index();
  change(index);
  return test::error_of([&] { dump_index(index); });
}

std::string read_index_text(const std::string& checkpoint) {
  return test::read_file(checkpoint + "/index.json");
}

/// Changes "slices" of a tensor in an index as earlier runs wrote it.
std::string with_slices(const std::string& index, const std::string& tensor,
                        const std::function<void(std::vector<io::Json>&)>& change) {
  io::Json root = io::parse_json(without_checksum(index));
  const auto member = [](io::Json& object, const std::string& name) -> io::Json& {
    return std::ranges::find(object.members, name, &std::pair<std::string, io::Json>::first)
        ->second;
  };
  change(member(member(member(member(root, "tensors"), kFile), tensor), "slices").items);
  return io::dump_json(root, 1);
}

std::string error_of_load(const std::string& checkpoint) {
  CheckpointInfo info;
  info.path = checkpoint;
  NamedTensors targets = zeros_like(parameters());
  return message_of([&] { load_file(info, kFile, targets, {.optional = {"count"}}); });
}

}  // namespace

TEST_CASE("index: what is written is read", "[checkpoint]") {
  const std::string text = dump_index(small_index());
  const Index index = parse_index(text);
  CHECK(index.step == 12);
  CHECK(index.metrics == std::map<std::string, double>{{"psnr", 20.5}});
  CHECK(index.files.members.size() == 3);
  REQUIRE(index.tensors.at(kFile).size() == 1);
  CHECK(index.tensors.at(kFile)[0].slices[1].begin == 2);
  CHECK(index.checksum.size() == 8);
  CHECK_THAT(text, Contains("\n \"crc32c\": \"" + index.checksum + "\""));
  CHECK(dump_index(index) == text);
  // Of earlier runs; laid out in another way.
  const Index earlier = parse_index(without_checksum(text));
  CHECK(earlier.checksum == index.checksum);
  CHECK(parse_index(io::dump_json(io::parse_json(text))).checksum == index.checksum);
}

TEST_CASE("index: no bit of it can change unseen", "[checkpoint]") {
  const std::string text = dump_index(small_index());
  std::vector<std::string> accepted;
  for (size_t byte = 0; byte < text.size(); ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = text;
      changed[byte] = static_cast<char>(changed[byte] ^ (1 << bit));
      if (message_of([&] { parse_index(changed); }).empty()) accepted.push_back(changed);
    }
  }
  CHECK(accepted.empty());
  std::string other_step = text;
  other_step.replace(other_step.find("\"step\": 12"), 10, "\"step\": 13");
  CHECK_THAT(test::error_of([&] { parse_index(other_step); }),
             Contains("index.json has the checksum ") && Contains(", expected "));
}

TEST_CASE("index: what a reader may take must be listed", "[checkpoint]") {
  CHECK(problem_of([](Index& index) { index.files = io::Json::object(); }) ==
        "index.json does not list state.json");
  CHECK(problem_of(
            [](Index& index) { index.files.members.erase(index.files.members.begin() + 1); }) ==
        "index.json: model.safetensors: tensor 'w' lies in 'model-00002-of-00002.safetensors', "
        "which is not listed");
  CHECK(problem_of([](Index& index) { index.files.set(kFile, io::Json::object()); }) ==
        "index.json: model.safetensors: lies in shards, but is listed too");
  CHECK(problem_of([](Index& index) { index.tensors["ema.safetensors"] = {}; }) ==
        "index.json: ema.safetensors: its tensors lie in 0 of 0 shards, expected all");
  CHECK(problem_of([](Index& index) {
          index.tensors[kFile][0].slices = {{"model-00001-of-00002.safetensors", 0, 4}};
        }) == "index.json: model.safetensors: its tensors lie in 1 of 2 shards, expected all");
  CHECK(problem_of([](Index& index) { index.tensors["ema.safetensors"] = index.tensors[kFile]; }) ==
        "index.json: ema.safetensors: tensor 'w' lies in 'model-00001-of-00002.safetensors', which "
        "is no shard of this file");
}

TEST_CASE("index: equal slices whose files are swapped are told", "[checkpoint][dist]") {
  const test::TempDir run;
  save_parts(run.path(), 3, 1, Layout::kEach);
  const std::string path = run / "checkpoints/step_0000001";
  const std::string index = read_index_text(path);
  const auto swap_files = [](std::vector<io::Json>& slices) {
    REQUIRE(slices.size() == 3);
    REQUIRE(slices[0].items[2].integer == slices[1].items[2].integer);
    std::swap(slices[0].items[0], slices[1].items[0]);
  };
  const std::string swapped = with_slices(index, "matrix", swap_files);
  test::write_file(path + "/index.json", swapped);
  CHECK(error_of_load(path) ==
        path +
            "/model-00002-of-00003.safetensors: tensor 'matrix' begins at element 33 of [9, 11], "
            "expected element 0 of [9, 11]");
  // Of an index with a checksum, before anything is loaded.
  const std::string checksum = parse_index(index).checksum;
  io::Json root = io::parse_json(swapped);
  root.set("crc32c", io::Json::string(checksum));
  test::write_file(path + "/index.json", io::dump_json(root, 1));
  CHECK_THAT(check_checkpoint(path).problem,
             Contains("index.json has the checksum ") && Contains(", expected " + checksum));
  CHECK_THAT(error_of_load(path), Contains(path + ": index.json has the checksum "));
}

TEST_CASE("index: one of an earlier run, without a checksum, is loaded", "[checkpoint][dist]") {
  const test::TempDir run;
  save_parts(run.path(), 3, 1);
  const std::string path = run / "checkpoints/step_0000001";
  const std::string index = read_index_text(path);
  test::write_file(path + "/index.json", without_checksum(index));
  const CheckpointInfo info = find_checkpoint(run.path());
  CHECK(info.checksum == parse_index(index).checksum);
  NamedTensors loaded = zeros_like(parameters());
  load_file(info, kFile, loaded, {.optional = {"count"}});
  CHECK(are_equal(loaded, parameters(1)));
}

TEST_CASE("index: weights that it does not list are refused", "[checkpoint][dist]") {
  const test::TempDir run;
  save_parts(run.path(), 2, 1);
  save_parts(run.path(), 2, 2);
  const std::string path = run / "checkpoints/step_0000002";
  test::write_file(path + "/notes.txt", "mine");
  const CheckpointInfo info = find_checkpoint(run.path());
  CHECK(info.step == 2);

  // Beside the shards a whole file of the same tensors with other values.
  io::write_safetensors(path + "/model.safetensors", as_arrays(parameters(99)), {});
  CHECK(check_checkpoint(path).problem ==
        "model.safetensors is not listed in index.json; move it to another folder");
  CHECK(find_checkpoint(run.path()).step == 1);
  NamedTensors loaded = zeros_like(parameters());
  load_file(info, kFile, loaded, {.optional = {"count"}});
  CHECK(are_equal(loaded, parameters(2)));
  fs::remove(path + "/model.safetensors");

  for (const std::string name : {"ema.safetensors", "ema-00001-of-00001.safetensors",
                                 "model.safetensors.index.json", "pytorch_model.bin"}) {
    test::write_file(path + "/" + name, "x");
    CHECK_THAT(check_checkpoint(path).problem, Contains(name + " is not listed in index.json"));
    fs::remove(path + "/" + name);
  }
  io::write_safetensors(path + "/ema.safetensors", as_arrays(parameters(99)), {});
  CHECK(message_of([&] { load_file(info, "ema.safetensors", loaded); }) ==
        path + ": holds no ema.safetensors");
}

TEST_CASE("index: an index that lists nothing is no checkpoint", "[checkpoint]") {
  const test::TempDir run;
  CheckpointStore(run / "checkpoints", {}).save(snapshot_of(1, parameters(1)));
  const std::string path = run / "checkpoints/step_0000001";
  CHECK(check_checkpoint(path).problem.empty());
  test::write_file(path + "/index.json",
                   R"({"format": "vgen-checkpoint-1", "step": 1, "metrics": {}, "files": {}})");
  CHECK(check_checkpoint(path).problem == "index.json does not list state.json");
  // What is listed must be there also when it is loaded.
  const test::TempDir other;
  CheckpointStore(other / "checkpoints", {}).save(snapshot_of(1, parameters(1)));
  fs::remove(other / "checkpoints/step_0000001/model.safetensors");
  CHECK_THAT(error_of_load(other / "checkpoints/step_0000001"),
             Contains("model.safetensors is missing"));
}

TEST_CASE("index: a checkpoint is not complete by the ranks' word alone", "[checkpoint][dist]") {
  const bool is_cut = GENERATE(false, true);
  const test::TempDir run;
  save_parts(run.path(), 2, 1);
  const std::string path = run / "checkpoints/step_0000002";
  const std::string shard = path + "/model-00002-of-00002.safetensors";
  const auto messages = texts_of_ranks(2, [&](dist::Group& group) {
    CheckpointStore store(run / "checkpoints", {.keep_last = 1}, &group, /*patience_ms=*/20);
    store.before_write = [&](std::string_view name) {  // all have written
      if (group.rank() != 0 || name != "state.json") return;
      is_cut ? fs::resize_file(shard, 100) : static_cast<void>(fs::remove(shard));
    };
    return message_of([&] { store.save(parts_snapshot(2, group)); });
  });
  CHECK(messages[0] == messages[1]);
  CHECK_THAT(messages[0], Contains("checkpoint of step 2 not saved: rank 0 (") &&
                              Contains(path +
                                       ": rank 0 does not see what was written: "
                                       "model-00002-of-00002.safetensors " +
                                       (is_cut ? "has 100 bytes, expected " : "is missing; ")) &&
                              Contains("put the run folder on a file system that all hosts share"));
  CHECK_FALSE(fs::exists(path));
  CHECK(find_checkpoint(run.path()).step == 1);  // not rotated away
}

TEST_CASE("index: ranks that do not see the same folder are told before the first step",
          "[checkpoint][dist]") {
  const test::TempDir run, other;
  fs::create_directories(run / "checkpoints");
  fs::create_directories(other / "checkpoints");
  fs::create_directory_symlink(run.path(), other / "link");
  const auto messages_with = [&](const std::string& folder_of_rank_1) {
    return texts_of_ranks(2, [&](dist::Group& group) {
      return message_of([&] {
        const CheckpointStore store(group.rank() == 0 ? run / "checkpoints" : folder_of_rank_1, {},
                                    &group, 20);
      });
    });
  };
  for (const std::string& folder : {other / "checkpoints", other / "nothing"}) {
    const auto messages = messages_with(folder);
    CHECK(messages[0] == messages[1]);
    CHECK_THAT(messages[0], Contains("rank 1 (") && Contains(": " + folder + kNotThere));
  }
  CHECK(messages_with(other / "link/checkpoints") == std::vector<std::string>(2));
  CHECK(files_in(run / "checkpoints").empty());  // nothing is left of it
}

TEST_CASE("index: ranks that find another checkpoint than rank 0 are told", "[checkpoint][dist]") {
  const test::TempDir run, copy, other;
  save_parts(run.path(), 2, 1);
  fs::copy(run.path(), copy.path(), fs::copy_options::recursive);
  // The same step, sizes and names, with other weights.
  test::run_ranks(2, [&](GroupPtr group) {
    Snapshot snapshot = parts_snapshot(1, *group);
    for (NamedTensor& item : snapshot.files[0].tensors) item.tensor.zero_();
    CheckpointStore(other / "checkpoints", {}, group.get()).save(snapshot);
  });
  const auto found_with = [&](const std::string& run_of_rank_1) {
    return texts_of_ranks(2, [&](dist::Group& group) {
      std::string path;
      const std::string message = message_of([&] {
        path = find_checkpoint(group.rank() == 0 ? run.path() : run_of_rank_1, group).path;
      });
      return message.empty() ? path : message;
    });
  };
  CHECK(found_with(copy.path()) == std::vector<std::string>{run / "checkpoints/step_0000001",
                                                            copy / "checkpoints/step_0000001"});
  const auto messages = found_with(other.path());
  CHECK(messages[0] == messages[1]);
  CHECK_THAT(messages[0], Contains("rank 1 (") && Contains(other / "checkpoints/step_0000001" +
                                                           "/index.json" + kNotThere));
  fs::remove_all(other / "checkpoints/step_0000001");
  CHECK_THAT(found_with(other.path())[0], Contains(other / "checkpoints/step_0000001" + kNotThere));
}
