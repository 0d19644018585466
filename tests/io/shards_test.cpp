#include "vgen/io/shards.h"

#include <catch2/catch.hpp>
#include <filesystem>

#include "support/support.h"
#include "vgen/io/convert.h"
#include "vgen/io/inspect.h"
#include "vgen/io/state_dict.h"

using namespace vgen;
using Catch::Contains;

namespace {

io::Array row(const std::vector<float>& values) {
  return io::make_array<float>({static_cast<int64_t>(values.size())}, values);
}

io::Metadata parts(const std::map<std::string, io::Part>& parts) {
  return {{"format", "pt"}, {std::string(io::kPartsKey), io::dump_parts(parts)}};
}

/// "w" of [2, 3] in two shards and "b" whole in the first.
void write_shards(const test::TempDir& dir) {
  io::write_safetensors(dir / "model-00001-of-00002.safetensors",
                        {{"w", row({0, 1, 2, 3})}, {"b", row({7})}}, parts({{"w", {{2, 3}, 0}}}));
  io::write_safetensors(dir / "model-00002-of-00002.safetensors", {{"w", row({4, 5})}},
                        parts({{"w", {{2, 3}, 4}}}));
}

std::string problem_of(io::SlicedTensor tensor) {
  return test::error_of([&] { io::check_slices(tensor); });
}

}  // namespace

TEST_CASE("shards: names are made and recognised", "[io]") {
  CHECK(io::shard_name("model.safetensors", 2, 4) == "model-00002-of-00004.safetensors");
  CHECK(io::shard_name("a.safetensors", 100000, 123456) == "a-100000-of-123456.safetensors");
  const auto name = io::parse_shard_name("my-model-00002-of-00004.safetensors");
  REQUIRE(name);
  CHECK(name->file == "my-model.safetensors");
  CHECK(name->number == 2);
  CHECK(name->count == 4);
  for (const char* other :
       {"model.safetensors", "model-2-of-4.safetensors", "model-00005-of-00004.safetensors",
        "model-00000-of-00004.safetensors", "model-00001-of-0000x.safetensors",
        "-00001-of-00002.safetensors", "-of-00002.safetensors", "model-00001-of-00002.bin",
        "model-00001-of-1000001.safetensors"}) {
    CAPTURE(other);
    CHECK_FALSE(io::parse_shard_name(other));
  }
}

TEST_CASE("shards: gaps, overlaps and slices beyond the tensor are told", "[io]") {
  const auto tensor = [](std::vector<io::Slice> slices) {
    return io::SlicedTensor{"w", io::Dtype::kFloat32, {2, 5}, std::move(slices)};
  };
  io::SlicedTensor fine = tensor({{"b", 4, 6}, {"a", 0, 4}, {"c", 2, 0}});
  io::check_slices(fine);
  CHECK(fine.slices.size() == 2);
  CHECK(fine.slices[0].file == "a");
  CHECK(problem_of(tensor({{"a", 0, 4}, {"b", 5, 5}})) ==
        "tensor 'w': no file holds element 4 of 10");
  CHECK(problem_of(tensor({{"a", 2, 8}})) == "tensor 'w': no file holds elements 0 to 1 of 10");
  CHECK(problem_of(tensor({{"a", 0, 8}})) == "tensor 'w': no file holds elements 8 to 9 of 10");
  CHECK(problem_of(tensor({})) == "tensor 'w': no file holds elements 0 to 9 of 10");
  CHECK(problem_of(tensor({{"a", 0, 6}, {"b", 4, 6}})) ==
        "tensor 'w': both a and b hold elements 4 to 5 of 10");
  CHECK(problem_of(tensor({{"a", 0, 11}})) ==
        "tensor 'w': a holds 11 elements from 0 on, but the tensor [2, 5] has 10");
  CHECK_THAT(problem_of(tensor({{"a", -1, 3}})), Contains("a holds 3 elements from -1 on"));
  io::SlicedTensor empty{"e", io::Dtype::kFloat32, {0, 5}, {{"a", 0, 0}}};
  io::check_slices(empty);
  CHECK(empty.slices.size() == 1);
}

TEST_CASE("shards: tensors come back whole, by any name of the set", "[io]") {
  const test::TempDir dir;
  write_shards(dir);
  for (const std::string& path :
       {dir.path(), dir / "model.safetensors", dir / "model-00001-of-00002.safetensors",
        dir / "model-00002-of-00002.safetensors"}) {
    CAPTURE(path);
    const io::StateDict state = io::load_state_dict(path);
    REQUIRE(state.tensors.size() == 2);
    REQUIRE(state.find("w") != nullptr);
    CHECK(state.find("w")->shape == std::vector<int64_t>{2, 3});
    CHECK(state.find("w")->as<float>()[5] == 5);
    CHECK(state.find("b")->as<float>()[0] == 7);
    CHECK(state.metadata == io::Metadata{{"format", "pt"}});
    CHECK(state.source == dir / "model.safetensors");
    CHECK(state.mappings.size() == 1);  // that of "b": "w" was copied
  }
  io::convert({.input = dir.path(), .output = dir / "whole.safetensors"});
  const io::Safetensors whole = io::read_safetensors(dir / "whole.safetensors");
  CHECK(whole.find("w")->shape == std::vector<int64_t>{2, 3});
  CHECK_FALSE(whole.metadata.contains(std::string(io::kPartsKey)));
}

TEST_CASE("shards: a folder is listed with whole tensors, one shard with its rows", "[io]") {
  const test::TempDir dir;
  write_shards(dir);
  const io::InspectReport folder = io::inspect({.path = dir.path()});
  REQUIRE(folder.tensors.size() == 2);
  CHECK(folder.tensors[0].group == "model.safetensors");
  CHECK_THAT(io::format_report(folder), Contains("w  float32  [2, 3]  24 B  model.safetensors"));
  CHECK(folder.file_bytes ==
        std::filesystem::file_size(dir / "model-00001-of-00002.safetensors") +
            std::filesystem::file_size(dir / "model-00002-of-00002.safetensors"));
  const io::InspectReport shard = io::inspect({.path = dir / "model-00002-of-00002.safetensors"});
  REQUIRE(shard.tensors.size() == 1);
  CHECK(shard.tensors[0].shape == std::vector<int64_t>{2});
  CHECK(shard.metadata.at(0) ==
        std::pair<std::string, std::string>("w", "from element 4 on of [2, 3]"));
}

TEST_CASE("shards: an index is compared with what the shards say themselves", "[io]") {
  const test::TempDir dir;
  write_shards(dir);
  const std::string first = "model-00001-of-00002.safetensors";
  const std::string second = "model-00002-of-00002.safetensors";
  const auto whole = [&](const std::string& name, std::vector<int64_t> shape,
                         std::vector<io::Slice> slices) {
    const io::SlicedTensor tensor{name, io::Dtype::kFloat32, std::move(shape), std::move(slices)};
    return io::SlicedFile(dir / "model.safetensors", {tensor}).whole(tensor);
  };
  CHECK(whole("w", {2, 3}, {{first, 0, 4}, {second, 4, 2}}).as<float>()[5] == 5);
  CHECK(whole("b", {1}, {{first, 0, 1}}).as<float>()[0] == 7);
  CHECK(test::error_of([&] {
          whole("w", {3, 2}, {{first, 0, 4}, {second, 4, 2}});
        }) ==
        dir / first + ": tensor 'w' begins at element 0 of [2, 3], expected element 0 of [3, 2]");
  CHECK(test::error_of([&] {
          whole("w", {2, 3}, {{second, 0, 2}, {first, 2, 4}});
        }) ==
        dir / second + ": tensor 'w' begins at element 4 of [2, 3], expected element 0 of [2, 3]");
  CHECK_THAT(test::error_of([&] {
               whole("b", {1, 1}, {{first, 0, 1}});
             }),
             Contains("tensor 'b' begins at element 0 of [1], expected element 0 of [1, 1]"));
  // No memory is taken for what is not there.
  const int64_t half = int64_t{1} << 50;
  CHECK(test::error_of([&] {
          whole("w", {2, half}, {{first, 0, half}, {second, half, half}});
        }) == dir / first + str_cat(": tensor 'w' has 4 elements of float32, expected ", half,
                                    " of float32"));
}

TEST_CASE("shards: sets that are incomplete or mixed are refused", "[io]") {
  const test::TempDir dir;
  write_shards(dir);
  const std::string second = dir / "model-00002-of-00002.safetensors";
  const auto error = [&] { return test::error_of([&] { io::load_state_dict(dir.path()); }); };

  std::filesystem::rename(second, dir / "other");
  CHECK_THAT(error(), Contains("model-00002-of-00002.safetensors: no such file"));
  io::write_safetensors(second, {{"w", row({4})}}, parts({{"w", {{2, 3}, 4}}}));
  CHECK_THAT(error(), Contains("model.safetensors: tensor 'w': no file holds element 5 of 6"));
  io::write_safetensors(second, {{"w", row({4, 5})}}, parts({{"w", {{3, 2}, 4}}}));
  CHECK_THAT(error(), Contains("tensor 'w' is of float32 [3, 2], but of float32 [2, 3] in "
                               "model-00001-of-00002.safetensors"));
  io::write_safetensors(second, {{"w", row({4, 5})}}, {{std::string(io::kPartsKey), "[1]"}});
  CHECK_THAT(error(), Contains("metadata 'vgen.parts'") && Contains("expected an object"));
  io::write_safetensors(second, {{"w", row({4, 5})}},
                        {{std::string(io::kPartsKey), R"({"w": {"shape": [2, 3]}})"}});
  CHECK_THAT(error(), Contains("missing 'begin'"));
  std::filesystem::rename(dir / "other", dir / "model-00003-of-00003.safetensors");
  CHECK_THAT(error(), Contains("there are shards of several sets"));
}

TEST_CASE("shards: parts in a file of another name are refused", "[io]") {
  const test::TempDir dir;
  write_shards(dir);
  std::filesystem::rename(dir / "model-00001-of-00002.safetensors", dir / "a.safetensors");
  CHECK_THAT(test::error_of([&] { io::load_state_dict(dir / "a.safetensors"); }),
             Contains("a.safetensors: holds parts of tensors ('vgen.parts'), but is not named"));
}
