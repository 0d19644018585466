// Checkpoints in shards, as several ranks write them: vgen convert and inspect.

#include <catch2/catch.hpp>
#include <filesystem>

#include "support/process.h"
#include "support/support.h"
#include "vgen/io/crc32c.h"
#include "vgen/io/mapped_file.h"
#include "vgen/io/shards.h"
#include "vgen/io/state_dict.h"

using namespace vgen;
using Catch::Contains;

namespace {

std::string index_entry(const std::string& folder, const std::string& name) {
  const io::MappedFile file(folder + "/" + name);
  return str_cat("\"", name, "\": {\"size_bytes\": ", file.bytes().size(), ", \"crc32c\": \"",
                 io::crc32c_text(io::crc32c(file.bytes())), "\"}");
}

/// A checkpoint of two ranks: "w" of [2, 3] in both shards of the model and of its averages.
std::string write_checkpoint(const std::string& run, int64_t step) {
  const std::string folder = str_cat(run, "/checkpoints/step_000000", step);
  std::filesystem::create_directories(folder);
  std::string entries, tensors;
  for (const std::string stem : {"model", "ema"}) {
    const float first = stem == "ema" ? 10 : 0;
    for (const int64_t begin : {0, 4}) {
      const std::string name = io::shard_name(stem + ".safetensors", begin == 0 ? 1 : 2, 2);
      const auto values = begin == 0
                              ? io::make_array<float>({4}, {first, first + 1, first + 2, first + 3})
                              : io::make_array<float>({2}, {first + 4, first + 5});
      io::write_safetensors(
          folder + "/" + name, {{"w", values}},
          {{std::string(io::kPartsKey), io::dump_parts({{"w", {{2, 3}, begin}}})}});
      entries += index_entry(folder, name) + ", ";
    }
    tensors +=
        str_cat(tensors.empty() ? "" : ", ", "\"", stem,
                R"(.safetensors": {"w": {"dtype": "float32", "shape": [2, 3], "slices": [[")", stem,
                R"(-00001-of-00002.safetensors", 0, 4], [")", stem,
                R"(-00002-of-00002.safetensors", 4, 2]]}})");
  }
  test::write_file(folder + "/state.json", "{}\n");
  test::write_file(
      folder + "/index.json",
      str_cat(R"({"format": "vgen-checkpoint-1", "step": )", step, R"(, "metrics": {}, "files": {)",
              entries, index_entry(folder, "state.json"), R"(}, "tensors": {)", tensors, "}}"));
  return folder;
}

}  // namespace

TEST_CASE("vgen: a checkpoint in shards becomes one file", "[apps]") {
  const test::TempDir dir;
  const std::string folder = write_checkpoint(dir / "run", 1);
  for (const std::string& input :
       {dir / "run", folder, folder + "/ema-00002-of-00002.safetensors"}) {
    const bool is_shard = input.ends_with(".safetensors");
    const std::string key = is_shard ? "auto" : "ema";
    for (const std::string output : {"a.safetensors", "a.pt"}) {
      CAPTURE(input, output);
      const auto result = test::run_vgen({"convert", input, dir / output, "--key", key, "--force"});
      CHECK(result.err == "");
      REQUIRE(result.exit_code == 0);
      CHECK_THAT(result.out, Contains("1 tensors, 24 B"));
      const io::StateDict state = io::load_state_dict(dir / output);
      REQUIRE(state.find("w") != nullptr);
      CHECK(state.find("w")->shape == std::vector<int64_t>{2, 3});
      CHECK(state.find("w")->as<float>()[5] == 15);
    }
  }
  const auto listed = test::run_vgen({"inspect", dir / "run"});
  CHECK(listed.exit_code == 0);
  CHECK_THAT(listed.out, Contains("w  float32  [2, 3]  24 B  ema.safetensors") &&
                             Contains("w  float32  [2, 3]  24 B  model.safetensors") &&
                             Contains("index.json: step"));
}

TEST_CASE("vgen: of damaged shards the file is named", "[apps]") {
  const test::TempDir dir;
  write_checkpoint(dir / "run", 1);
  const std::string folder = write_checkpoint(dir / "run", 2);
  const std::string shard = folder + "/model-00002-of-00002.safetensors";
  std::string bytes = test::read_file(shard);
  bytes.back() ^= 1;
  test::write_file(shard, bytes);
  CHECK_THAT(test::vgen_error({"inspect", folder, "--verify"}),
             Contains("model-00002-of-00002.safetensors has the checksum"));
  // Of a run the newest is verified, and no older one in its place.
  CHECK_THAT(test::vgen_error({"inspect", dir / "run", "--verify"}),
             Contains("model-00002-of-00002.safetensors has the checksum"));
  CHECK_THAT(test::run_vgen({"inspect", dir / "run"}).out, Contains("step_0000002"));
  CHECK_THAT(test::vgen_error({"convert", folder, dir / "a.pt"}),
             Contains("model-00002-of-00002.safetensors has the checksum"));
  const auto result = test::run_vgen({"convert", dir / "run", dir / "a.pt"});
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.out, Contains("step_0000001"));
}
