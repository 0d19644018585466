#include "vgen/io/inspect.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <set>

#include "support/support.h"
#include "vgen/io/json.h"
#include "vgen/io/npy.h"
#include "vgen/io/safetensors.h"
#include "vgen/io/state_dict.h"

using namespace vgen;
using Catch::Contains;

namespace {

/// The files of weights below a folder. torch-save has files of its own kind, and its own tests.
std::vector<std::string> checkpoints_below(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::filesystem::path& path = entry.path();
    const std::string extension = path.extension().string();
    const bool is_weights = extension == ".pt" || extension == ".pth" || extension == ".bin" ||
                            extension == ".safetensors";
    if (is_weights && path.string().find("/torch-save/") == std::string::npos) {
      paths.push_back(path.string());
    }
  }
  std::ranges::sort(paths);
  return paths;
}

/// Both readers, on all that is in the file: the same names, and bytes of the size that they say.
void check_checkpoint_file(const std::string& path) {
  INFO(path);
  const io::InspectReport report = io::inspect({.path = path, .must_verify = true});
  const io::StateDict all = io::load_state_dict(path, "all");
  std::multiset<std::string> listed, loaded;
  uint64_t listed_bytes = 0, loaded_bytes = 0;
  for (const io::TensorInfo& tensor : report.tensors) {
    listed.insert(tensor.name);
    listed_bytes += tensor.size_bytes;
  }
  for (const io::NamedArray& tensor : all.tensors) {
    loaded.insert(tensor.name);
    loaded_bytes += tensor.array.data.size();
  }
  CHECK(listed == loaded);
  CHECK(listed_bytes == loaded_bytes);
  const io::StateDict weights = io::load_state_dict(path);
  CHECK(weights.tensors.size() >= 3);
  CHECK(weights.tensors.size() <= all.tensors.size());
}

}  // namespace

TEST_CASE("inspect: every golden checkpoint is read, listed and verified", "[io][golden]") {
  const auto paths = checkpoints_below(test::project_path("tests/golden"));
  CHECK(paths.size() >= 19);
  for (const std::string& path : paths) check_checkpoint_file(path);
  // More of them may lie beside the project.
  const std::string beside = test::project_path("../shared/golden");
  if (!std::filesystem::is_directory(beside)) return;
  const auto others = checkpoints_below(beside);
  for (const std::string& path : others) check_checkpoint_file(path);
}

TEST_CASE("inspect: a training checkpoint, by dict", "[io][golden]") {
  const std::string path = test::golden("torch-save/valid/ckpt_llamagen.pt");
  const auto report = io::inspect({.path = path});
  CHECK(report.format == "PyTorch zip");
  const auto text = io::format_report(report);
  CHECK_THAT(text, Contains("model.lin.weight") && Contains("float32") && Contains("[2, 3]"));
  CHECK_THAT(text, Contains("by dict:") && Contains("  optimizer.state  "));
  CHECK_THAT(text, Contains("metadata:") && Contains("  steps  ") && Contains("1234"));
  CHECK_THAT(text, Contains("args.gpt_model"));
}

TEST_CASE("inspect: filters are globs or parts of names", "[io][golden]") {
  const std::string path = test::golden("torch-save/valid/ckpt_llamagen.pt");
  const auto count = [&](const std::string& filter) {
    return io::inspect({.path = path, .filter = filter}).tensors.size();
  };
  CHECK(count("model.lin.*") == 2);
  CHECK(count("lin.weight") == 2);  // of model and ema
  CHECK(count("nobody") == 0);
  CHECK(io::inspect({.path = path, .filter = "args.gpt*"}).metadata.size() == 2);
  CHECK(count("*") == count(""));
}

TEST_CASE("inspect: JSON has every figure", "[io]") {
  const test::TempDir dir;
  io::write_safetensors(dir / "a.safetensors",
                        {{"w", io::make_array<float>({2, 3}, {1, 2, 3, 4, 5, 6})},
                         {"n", io::make_array<int64_t>({}, {1})}},
                        {{"format", "pt"}});
  const auto report = io::inspect({.path = dir / "a.safetensors"});
  const io::Json json = io::parse_json(io::report_json(report));
  CHECK(json.get_string("format") == "safetensors");
  CHECK(json.get_int("num_tensors") == 2);
  CHECK(json.get_int("num_parameters") == 7);
  CHECK(json.get_int("size_bytes") == 32);
  CHECK(json.get_object("metadata").get_string("format") == "pt");
  const io::Json& w = json.get_array("tensors").items.at(1);
  CHECK(w.get_string("name") == "w");
  CHECK(w.get_string("dtype") == "float32");
  CHECK(w.get_array("shape").items.at(1).integer == 3);
}

TEST_CASE("inspect: npy, npz, shards and checkpoint folders", "[io]") {
  const test::TempDir dir;
  const auto one = io::make_array<float>({1}, {1});
  io::write_npy(dir / "codes.npy", one);
  CHECK(io::inspect({.path = dir / "codes.npy"}).tensors.at(0).name == "codes");
  io::NpzWriter npz(dir / "a.npz");
  npz.add("x", one);
  npz.finish();
  CHECK(io::inspect({.path = dir / "a.npz"}).tensors.at(0).shape == std::vector<int64_t>{1});
  io::write_safetensors(dir / "model.safetensors", {{"w", one}});
  io::write_safetensors(dir / "ema.safetensors", {{"w", one}});
  test::write_file(dir / "state.json", R"({"step":7,"name":"x","inner":{"a":1}})");
  const auto text = io::format_report(io::inspect({.path = dir.path()}));
  CHECK_THAT(text, Contains("checkpoint folder") && Contains("by file:") &&
                       Contains("  ema.safetensors ") && Contains("state.json: step") &&
                       Contains("total: 2 tensors, 2 parameters, 8 B"));
  CHECK_THAT(text, !Contains("inner"));
  test::write_file(dir / "model.safetensors.index.json",
                   R"({"weight_map":{"w":"model.safetensors"}})");
  const auto shards = io::inspect({.path = dir / "model.safetensors.index.json"});
  CHECK(shards.format == "sharded safetensors");
  CHECK(shards.tensors.at(0).group == "model.safetensors");
}

TEST_CASE("inspect: bad files and damaged data are told", "[io][golden]") {
  const test::TempDir dir;
  CHECK_THAT(test::error_of([&] { io::inspect({.path = dir.path()}); }),
             Contains("a folder without .safetensors files"));
  CHECK_THAT(test::error_of([&] { io::inspect({.path = dir / "x"}); }), Contains("no such file"));
  const std::string page = test::golden("torch-save/hostile/html_error_page.pt");
  CHECK_THAT(test::error_of([&] { io::inspect({.path = page}); }),
             Contains("html_error_page.pt: is a web page, not a checkpoint"));
  // Only reading the data can find a wrong checksum.
  const std::string damaged = test::golden("torch-save/hostile/wrong_crc.pt");
  CHECK(!io::inspect({.path = damaged}).tensors.empty());
  CHECK_THAT(test::error_of([&] { io::inspect({.path = damaged, .must_verify = true}); }),
             Contains("does not match its CRC-32"));
  test::write_file(dir / "model.safetensors", test::read_file(page));
  CHECK_THAT(test::error_of([&] { io::inspect({.path = dir.path()}); }),
             Contains("model.safetensors: is a web page"));
}

TEST_CASE("inspect: control characters of names never reach the terminal", "[io]") {
  const test::TempDir dir;
  io::write_safetensors(dir / "a.safetensors", {{"evil\x1b[2J\n", io::make_array<float>({1}, {1})}},
                        {{"k\x1b", "v\x1b"}});
  const auto text = io::format_report(io::inspect({.path = dir / "a.safetensors"}));
  CHECK(text.find('\x1b') == std::string::npos);
  CHECK_THAT(text, Contains("evil?[2J?"));
}
