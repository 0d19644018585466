// `vgen sample`, `vgen edit`, `vgen extract` and `vgen reconstruct` with VAR's models, as a user
// runs them.

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>

#include "support/process.h"
#include "support/support.h"
#include "vgen/io/json.h"
#include "vgen/io/state_dict.h"

namespace vgen {

using Catch::Matchers::Contains;
using test::golden;
using test::run_vgen;
using test::vgen_error;
namespace fs = std::filesystem;

namespace {

using Arguments = std::vector<std::string>;

Arguments with_models(const std::string& command, const Arguments& more) {
  Arguments arguments = {command, golden("var/var.pth"), "--tokenizer", golden("var_vae/vae.pth")};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

/// The first codes of the golden tokenizer, and what its file says besides.
std::string write_tokenizer(const std::string& path, int64_t codebook_size,
                            const io::Metadata& metadata) {
  io::StateDict state = io::load_state_dict(golden("var_vae/vae.pth"));
  for (io::NamedArray& item : state.tensors) {
    if (item.name != "quantize.embedding.weight") continue;
    io::Array& array = item.array;
    const size_t row = array.data.size() / static_cast<size_t>(array.shape[0]);
    array.shape[0] = codebook_size;
    array.data = array.data.first(row * static_cast<size_t>(codebook_size));
  }
  std::erase_if(state.tensors, [](const io::NamedArray& item) {
    return item.name == "quantize.ema_vocab_hit_SV";
  });
  io::write_safetensors(path, state.tensors, metadata);
  return path;
}

/// A picture of 16 x 12 pixels, PPM.
std::string picture(const test::TempDir& dir, const std::string& name, int width = 16,
                    int height = 12) {
  std::string text = "P6\n" + std::to_string(width) + " " + std::to_string(height) + "\n255\n";
  for (int i = 0; i < width * height; ++i) {
    text += {static_cast<char>(i % 97), static_cast<char>(i % 113), static_cast<char>(i % 61)};
  }
  const std::string path = dir / name;
  test::write_file(path, text);
  return path;
}

}  // namespace

TEST_CASE("vgen sample: VAR draws pictures, scale by scale", "[apps]") {
  const test::TempDir dir;
  const auto draw = [&](const std::string& out, const Arguments& more) {
    Arguments arguments = with_models(
        "sample", {"--class-id", "3,7", "--count", "2", "--out", dir / out, "--seed", "5"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_vgen(arguments);
  };
  const auto result = draw("a", {"--show-scales", "--cfg-scale", "1.5"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  for (const char* name : {"000003.png", "000003_scales.png", "grid.png", "codes.npy"}) {
    CHECK(fs::exists(dir / "a/" + name));
  }
  CHECK_THAT(test::read_file(dir / "a/000000.png"),
             Contains("\"cfg_scale\":1.5") && Contains("\"top_k\":900"));
  // The same images whatever the batch and the number of threads.
  REQUIRE(draw("b", {"--cfg-scale", "1.5", "--batch-size", "1", "--threads", "1"}).exit_code == 0);
  CHECK(test::read_file(dir / "a/codes.npy") == test::read_file(dir / "b/codes.npy"));
  const auto smooth = draw("c", {"--more-smooth", "--precision", "int8"});
  INFO(smooth.err);
  REQUIRE(smooth.exit_code == 0);
  CHECK_THAT(test::read_file(dir / "c/000000.png"),
             Contains("\"more_smooth\":true") && Contains("\"precision\":\"int8\""));
  CHECK_THAT(smooth.out, Contains("4 images"));

  const Arguments fid = with_models(
      "sample", {"--fid", "70", "--npz", dir / "x.npz", "--eval-size", "8", "--cfg-scale", "1.5"});
  REQUIRE(run_vgen(fid).exit_code == 0);
  CHECK(fs::file_size(dir / "x.npz") > 70 * 8 * 8 * 3);
}

TEST_CASE("vgen sample: what does not fit VAR is named", "[apps]") {
  const test::TempDir dir;
  const auto error_of = [&](const Arguments& more) {
    Arguments arguments = with_models("sample", {"--out", dir / "a"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return vgen_error(arguments);
  };
  CHECK_THAT(error_of({"--class-id", "10"}), Contains("class 10: the model has classes 0 to 9"));
  CHECK_THAT(error_of({"--class-id", "1", "--top-p", "0"}), Contains("top-p 0"));
  CHECK_THAT(error_of({"--class-id", "1", "--cfg-scale", "-1"}), Contains("cfg-scale -1"));
  CHECK_THAT(error_of({"--class-id", "1", "--image-size", "16"}), Contains("8 pixels only"));
  CHECK_THAT(
      vgen_error({"sample", golden("var/var.pth"), "--tokenizer", golden("vq16/ckpt.safetensors"),
                  "--class-id", "1", "--out", dir / "a"}),
      Contains("a tokenizer of one scale, but ") &&
          Contains("draws several; use the tokenizer that the transformer was trained with"));
  test::write_file(dir / "vae.yaml",
                   "ch: 32\nch_mult: [1, 1]\nz_channels: 16\ncodebook_size: 64\n"
                   "patch_nums: [1, 2, 4]\n");
  CHECK_THAT(error_of({"--class-id", "1", "--tokenizer-config", dir / "vae.yaml"}),
             Contains("has the scales 1 2 3 4") && Contains("1 2 4"));
  CHECK_THAT(error_of({"--class-id", "1", "--cfg-interval", "2"}), Contains("cfg-interval"));
  CHECK_THAT(
      vgen_error(with_models("sample", {"--fid", "2", "--npz", dir / "x.npz", "--more-smooth"})),
      Contains("not for FID"));
  CHECK_THAT(vgen_error({"sample", golden("gpt_c2i/ckpt.safetensors"), "--n-head", "2",
                         "--tokenizer", golden("vq16/ckpt.safetensors"), "--class-id", "1", "--out",
                         dir / "a", "--image-size", "96", "--more-smooth"}),
             Contains("is a GPT"));
  CHECK_FALSE(fs::exists(dir / "a"));
}

TEST_CASE("vgen sample, vgen edit: a tokenizer of another vocabulary is named", "[apps]") {
  const test::TempDir dir;
  const std::string vae = write_tokenizer(dir / "half.safetensors", 32, {});
  const std::string scales =
      write_tokenizer(dir / "scales.safetensors", 64, {{"patch_nums", "[1, 2, 3, 4]"}});
  const std::string image = picture(dir, "image.ppm");
  const auto error_of = [&](const std::string& command, const Arguments& more) {
    Arguments arguments = {command,    golden("var/var.pth"), "--tokenizer", vae, "--out",
                           dir / "out"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return vgen_error(arguments);
  };
  for (const std::string& line : {error_of("sample", {"--class-id", "1"}),
                                  error_of("edit", {"--image", image, "--box", "0,0,0.5,0.5"})}) {
    CHECK_THAT(line, Contains("var.pth: has a vocabulary of 64, but the codebook of ") &&
                         Contains("half.safetensors has 32 entries; use the tokenizer that the "
                                  "transformer was trained with"));
  }
  CHECK_THAT(vgen_error({"sample", golden("gpt_c2i/ckpt.safetensors"), "--n-head", "2",
                         "--tokenizer", scales, "--class-id", "1", "--out", dir / "out"}),
             Contains("a tokenizer of several scales, but ") &&
                 Contains("draws one; use the tokenizer that the GPT was trained with"));
  CHECK_FALSE(fs::exists(dir / "out"));
}

TEST_CASE("vgen edit: boxes, masks, a larger canvas, completion", "[apps]") {
  const test::TempDir dir;
  const std::string image = picture(dir, "image.ppm");
  const auto edit = [&](const Arguments& more) {
    Arguments arguments = with_models("edit", {"--image", image, "--out", dir / "out", "--force",
                                               "--count", "2", "--precision", "fp32"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_vgen(arguments);
  };
  const auto filled = edit({"--box", "0.25,0.25,0.75,0.75", "--keep-original"});
  INFO(filled.err);
  REQUIRE(filled.exit_code == 0);
  for (const char* name : {"000000.png", "000001.png", "grid.png", "edit.json"}) {
    CHECK(fs::exists(dir / "out/" + name));
  }
  CHECK_THAT(test::read_file(dir / "out/edit.json"), Contains("\"kept_share\": 0.75"));
  CHECK(edit({"--task", "outpaint", "--box", "0.25,0.25,0.75,0.75", "--extend"}).exit_code == 0);
  CHECK(edit({"--box", "0.25,0.25,0.75,0.75", "--class-id", "3"}).exit_code == 0);
  std::string mask = "P5\n16 12\n255\n" + std::string(96, '\0') + std::string(96, '\xff');
  test::write_file(dir / "mask.pgm", mask);
  CHECK(edit({"--mask", dir / "mask.pgm"}).exit_code == 0);
  CHECK_THAT(test::read_file(dir / "out/edit.json"), Contains("\"kept_share\": 0.5"));

  const Arguments complete = {"edit",
                              golden("gpt_c2i/ckpt.safetensors"),
                              "--n-head",
                              "2",
                              "--tokenizer",
                              golden("vq16/ckpt.safetensors"),
                              "--image",
                              image,
                              "--image-size",
                              "96",
                              "--task",
                              "complete",
                              "--class-id",
                              "3",
                              "--count",
                              "2",
                              "--keep-rows",
                              "0.5",
                              "--keep-original",
                              "--out",
                              dir / "completed"};
  const auto completed = run_vgen(complete);
  INFO(completed.err);
  CHECK(completed.exit_code == 0);
}

TEST_CASE("vgen edit: bad input is one line, and nothing is written", "[apps]") {
  const test::TempDir dir;
  const std::string image = picture(dir, "image.ppm"), other = picture(dir, "other.ppm", 8, 8);
  const auto error_of = [&](const Arguments& more) {
    Arguments arguments = with_models("edit", {"--image", image, "--out", dir / "out"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return vgen_error(arguments);
  };
  CHECK_THAT(error_of({}), Contains("give a box or a mask"));
  CHECK_THAT(error_of({"--box", "0.5,0.5,0.2,0.8"}), Contains("expected top,left,bottom,right"));
  CHECK_THAT(error_of({"--box", "0,0,1,1"}), Contains("nothing of the image stays"));
  CHECK_THAT(error_of({"--box", "0,0,0.01,0.01"}), Contains("nothing is to be drawn anew"));
  CHECK_THAT(error_of({"--mask", other}),
             Contains("a mask of 8 x 8 pixels") &&
                 Contains("has 16 x 12; give a mask of the image's size"));
  const auto plain_mask = [&](const std::string& name, char value) {
    test::write_file(dir / name, "P5\n16 12\n255\n" + std::string(16 * 12, value));
    return dir / name;
  };
  CHECK_THAT(error_of({"--mask", plain_mask("black.pgm", '\0')}),
             Contains("black.pgm: nothing is to be drawn anew; the mask is dark"));
  CHECK_THAT(error_of({"--mask", plain_mask("white.pgm", '\xff')}),
             Contains("white.pgm: nothing of the image stays"));
  test::write_file(dir / "text.pgm", "no picture");
  CHECK_THAT(error_of({"--mask", dir / "text.pgm"}), Contains("text.pgm"));
  CHECK_THAT(error_of({"--box", "0,0,0.5,0.5", "--class-id", "10"}),
             Contains("class 10: expected 0 to 9, or -1 for none"));
  CHECK_THAT(error_of({"--task", "outpaint", "--box", "0,0,1,1"}),
             Contains("it covers the whole image, which stays; give a smaller one"));
  CHECK_THAT(vgen_error(with_models("edit", {"--image", dir / "gone.png", "--box", "0,0,0.5,0.5",
                                             "--out", dir / "out"})),
             Contains("gone.png: no such file"));
  CHECK_THAT(error_of({"--task", "complete", "--class-id", "1"}), Contains("inpaint or outpaint"));
  CHECK_THAT(error_of({"--box", "0,0,0.5,0.5", "--extend"}), Contains("outpaint"));
  CHECK_THAT(error_of({"--task", "outpaint", "--box", "0,0,0.01,0.01", "--extend"}),
             Contains("is empty at 8 pixels"));
  CHECK_FALSE(fs::exists(dir / "out"));
}

TEST_CASE("vgen reconstruct and extract: a tokenizer of several scales", "[apps]") {
  const test::TempDir dir;
  fs::create_directories(dir / "images/a");
  for (int i = 0; i < 4; ++i) picture(dir, "images/a/" + std::to_string(i) + ".ppm", 12 + i, 12);
  const std::string config = dir / "vae.yaml";
  test::write_file(config,
                   "ch: 32\nch_mult: [1, 1]\nz_channels: 16\ncodebook_size: 64\n"
                   "patch_nums: [1, 2, 3, 4]\n");
  const auto result = run_vgen({"reconstruct", golden("var_vae/vae.pth"), dir / "images",
                                "--config", config, "--out", dir / "r", "--device", "cpu"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(fs::exists(dir / "r/scales.png"));
  const auto extracted =
      run_vgen({"extract", golden("var_vae/vae.pth"), dir / "images", "--config", config,
                "--image-size", "8", "--device", "cpu", "--out", dir / "codes"});
  INFO(extracted.err);
  REQUIRE(extracted.exit_code == 0);
  const io::Json index = io::parse_json(test::read_file(dir / "codes/index.json"));
  CHECK(index.get_int("images") == 4);
  std::vector<int64_t> sides;
  for (const io::Json& side : index.get_object("settings").get_array("patch_nums").items) {
    sides.push_back(side.integer);
  }
  CHECK(sides == std::vector<int64_t>{1, 2, 3, 4});
}

TEST_CASE("vgen bench var: a row for each precision and batch", "[apps]") {
  const auto result = run_vgen({"bench", "var", "--checkpoint", golden("var/var.pth"),
                                "--tokenizer", golden("var_vae/vae.pth"), "--precision",
                                "fp32,bf16,int8", "--batch", "1,2", "--repeats", "1", "--json"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const io::Json report = io::parse_json(result.out);
  CHECK(report.get_int("parameters") > 0);
  const auto& rows = report.get_array("rows").items;
  REQUIRE(rows.size() == 6);
  const std::string precisions[] = {"fp32", "bf16", "int8"};
  for (size_t i = 0; i < rows.size(); ++i) {
    CHECK(rows[i].get_string("precision") == precisions[i / 2]);
    CHECK(rows[i].get_int("batch") == static_cast<int64_t>(i % 2 + 1));
    CHECK(rows[i].get_float("seconds") > rows[i].get_float("decode_seconds"));
    CHECK(rows[i].get_float("decode_seconds") > 0);
  }
  CHECK_THAT(vgen_error({"bench", "var", "--size", "d17"}), Contains("expected one of d12"));
  CHECK_THAT(vgen_error({"bench", "var", "--size", "d12", "--scales", "4,2"}),
             Contains("patch_nums is [4, 2], expected sides that grow from at least 1"));
}

TEST_CASE("vgen bench var-attention: a row for each way to cut the scales", "[apps]") {
  const auto result = run_vgen({"bench", "var-attention", "--size", "d12", "--batch", "1",
                                "--repeats", "1", "--threads", "1", "--json"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const auto& rows = io::parse_json(result.out).get_array("rows").items;
  REQUIRE(rows.size() == 3);
  const int64_t calls[] = {10, 3, 1};  // ten scales
  for (size_t i = 0; i < rows.size(); ++i) {
    CHECK(rows[i].get_int("calls") == calls[i]);
    CHECK(rows[i].get_float("step_seconds") > rows[i].get_float("forward_seconds"));
  }
  CHECK(rows[0].get_float("product_share") < rows[1].get_float("product_share"));
  CHECK(rows[2].get_float("product_share") == 1);
}

TEST_CASE("vgen bench var-train: prints a row for each precision", "[apps]") {
  const auto result = run_vgen(
      {"bench", "var-train", "--size", "d12", "--batch", "1", "--repeats", "1", "--threads", "1"});
  INFO(result.err);
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.out, Contains("tokens/s") && Contains("fp32"));
}

TEST_CASE("vgen bench compare: a GPT and a VAR at the same size of image", "[apps]") {
  const Arguments words = {"bench",     "compare", "--gpt-size",  "B",    "--var-size", "d12",
                           "--scales",  "1,2,4",   "--precision", "fp32", "--batch",    "2",
                           "--repeats", "1",       "--threads",   "1"};
  Arguments as_json = words;
  as_json.push_back("--json");
  const auto result = run_vgen(as_json);
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const io::Json report = io::parse_json(result.out);
  CHECK(report.get_int("image_size") == 64);
  CHECK_THAT(report.get_string("gpt"), Contains("GPT-B, 111 million") && Contains("16 codes"));
  CHECK_THAT(report.get_string("var"),
             Contains("VAR-d12, 133 million") && Contains("21 codes in 3 steps"));
  const auto& rows = report.get_array("rows").items;
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].get_int("batch") == 2);
  CHECK(rows[0].get_float("ratio") ==
        Approx(rows[0].get_float("gpt_seconds") / rows[0].get_float("var_seconds")));
  for (const std::string side : {"gpt", "var"}) {
    CHECK(rows[0].get_float(side + "_decode_seconds") > 0);
    CHECK(rows[0].get_float(side + "_seconds") > rows[0].get_float(side + "_decode_seconds"));
  }
  CHECK_THAT(run_vgen({"bench", "compare", "--help"}).out, Contains("--gpt-size"));
  CHECK_THAT(vgen_error({"bench", "compare", "--gpt-size", "S"}),
             Contains("GPT size 'S': expected one of B"));
}

}  // namespace vgen
