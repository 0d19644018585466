#include "vgen/io/convert.h"

#include <algorithm>
#include <catch2/catch.hpp>

#include "support/support.h"
#include "vgen/io/state_dict.h"

using namespace vgen;
using Catch::Contains;

namespace {

void check_equal(const io::StateDict& a, const io::StateDict& b) {
  REQUIRE(a.tensors.size() == b.tensors.size());
  for (const auto& [name, array] : a.tensors) {
    CAPTURE(name);
    const io::Array* other = b.find(name);
    REQUIRE(other != nullptr);
    CHECK(other->dtype == array.dtype);
    CHECK(other->shape == array.shape);
    CHECK(std::ranges::equal(other->data, array.data));
  }
}

}  // namespace

TEST_CASE("convert: both ways keep every bit", "[io][golden]") {
  const test::TempDir dir;
  const std::string name = GENERATE("dtypes", "views", "params", "state_dict", "ckpt_llamagen",
                                    "ckpt_var", "legacy", "legacy_py2", "big_endian", "v3_dtypes");
  CAPTURE(name);
  const std::string input = test::golden("torch-save/valid/" + name + ".pt");
  const auto original = io::load_state_dict(input);
  const auto result = io::convert({.input = input, .output = dir / "a.safetensors"});
  CHECK(result.num_tensors == original.tensors.size());
  CHECK(result.key == original.key);
  check_equal(original, io::load_state_dict(dir / "a.safetensors"));
  io::convert({.input = dir / "a.safetensors", .output = dir / "b.pt"});
  check_equal(original, io::load_state_dict(dir / "b.pt"));
}

TEST_CASE("convert: keys, nesting and metadata", "[io][golden]") {
  const test::TempDir dir;
  const std::string input = test::golden("torch-save/valid/ckpt_llamagen.pt");
  io::convert({.input = input, .output = dir / "e.pt", .key = "ema", .nest = "model"});
  CHECK(io::load_state_dict(dir / "e.pt").key == "model");
  check_equal(io::load_state_dict(input, "ema"), io::load_state_dict(dir / "e.pt"));
  io::convert({.input = input, .output = dir / "all.safetensors", .key = "all"});
  const auto all = io::load_state_dict(dir / "all.safetensors");
  CHECK(all.metadata.at("format") == "pt");
  CHECK(all.metadata.at("steps") == "1234");
  CHECK(all.find("optimizer.state.0.exp_avg") != nullptr);
  io::convert({.input = dir / "e.pt", .output = dir / "e.npz"});
  check_equal(io::load_state_dict(dir / "e.pt"), io::load_state_dict(dir / "e.npz"));
}

TEST_CASE("convert: refusals harm nothing", "[io][golden]") {
  const test::TempDir dir;
  const std::string input = test::golden("torch-save/valid/dtypes.pt");
  const auto complaint = [](const io::ConvertConfig& config) {
    return test::error_of([&] { io::convert(config); });
  };
  test::write_file(dir / "a.pt", "precious");
  CHECK_THAT(complaint({.input = input, .output = dir / "a.pt"}),
             Contains("a.pt: exists; pass --force to replace it"));
  CHECK_THAT(complaint({.input = input, .output = dir / "a.onnx"}),
             Contains("extension '.onnx', expected .safetensors, .pt, .pth, .bin or .npz"));
  CHECK_THAT(complaint({.input = input, .output = dir / "a.npz", .nest = "x"}),
             Contains("only PyTorch files nest"));
  CHECK_THAT(complaint({.input = input, .output = dir / "a.npz"}),
             Contains("a.npz: tensor 'bf16': NumPy has no type for bfloat16"));
  CHECK_THAT(complaint({.input = dir / "a.pt", .output = dir / "b.pt"}),
             Contains("a.pt: starts with 'precious'"));
  CHECK_THAT(complaint({.input = test::golden("torch-save/hostile/wrong_crc.pt"),
                        .output = dir / "a.pt",
                        .must_overwrite = true}),
             Contains("does not match its CRC-32"));
  CHECK(test::read_file(dir / "a.pt") == "precious");
  io::convert({.input = input, .output = dir / "a.pt", .must_overwrite = true});
  // A file may replace itself: what is mapped lives on.
  io::convert({.input = dir / "a.pt", .output = dir / "a.pt", .must_overwrite = true});
  check_equal(io::load_state_dict(input), io::load_state_dict(dir / "a.pt"));
}
