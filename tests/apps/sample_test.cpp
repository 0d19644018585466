// `vgen sample` as a user runs it, with small models.

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <map>
#include <thread>

#include "support/process.h"
#include "support/support.h"
#include "vgen/core/strings.h"
#include "vgen/io/json.h"
#include "vgen/io/npy.h"
#include "vgen/io/safetensors.h"

namespace vgen {

using Catch::Matchers::Contains;
using test::golden;
using test::run_vgen;
using test::vgen_error;
namespace fs = std::filesystem;

namespace {

using Arguments = std::vector<std::string>;

/// A GPT of 128 codes on 6 x 6 and a tokenizer with as many.
Arguments sample(const Arguments& more,
                 const std::string& tokenizer = golden("vq16/ckpt.safetensors")) {
  Arguments arguments = {
      "sample", golden("gpt_c2i/ckpt.safetensors"), "--n-head", "2", "--tokenizer", tokenizer};
  const bool has_size = std::find(more.begin(), more.end(), "--image-size") != more.end();
  if (!has_size) arguments.insert(arguments.end(), {"--image-size", "96"});
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

/// The GPT of sample() with another number of rows in its class table, which repeat.
std::string with_class_rows(const std::string& path, int64_t rows) {
  std::vector<io::NamedArray> tensors =
      io::read_safetensors(golden("gpt_c2i/ckpt.safetensors")).tensors;
  for (auto& [name, array] : tensors) {
    if (name != "cls_embedding.embedding_table.weight") continue;
    const auto known = array.as<float>();
    std::vector<float> values(static_cast<size_t>(rows * array.shape[1]));
    for (size_t i = 0; i < values.size(); ++i) values[i] = known[i % known.size()];
    array = io::make_array<float>({rows, array.shape[1]}, values);
  }
  io::write_safetensors(path, tensors);
  return path;
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// 320 images of 32 pixels in five parts of 12 KiB, on one thread.
Arguments fid_320(const std::string& npz, const Arguments& more = {}) {
  Arguments arguments = {"--fid",        "320",         "--npz",   npz,         "--image-size",
                         "32",           "--eval-size", "8",       "--threads", "1",
                         "--batch-size", "1",           "--top-k", "0"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return sample(arguments);
}

/// The parts of --fid that are there: their bytes and when they were written.
std::map<std::string, std::pair<std::string, fs::file_time_type>> parts_in(
    const std::string& folder) {
  std::map<std::string, std::pair<std::string, fs::file_time_type>> parts;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("part_")) continue;
    parts[name] = {test::read_file(entry.path().string()), fs::last_write_time(entry)};
  }
  return parts;
}

/// vgen where no file can grow beyond so many KiB: the disk is as good as full.
test::ProcessResult run_limited(int64_t max_kib, const Arguments& arguments) {
  Arguments words = {"-c", str_cat("trap '' XFSZ; ulimit -f ", max_kib, "; exec \"$0\" \"$@\""),
                     test::vgen_executable()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  return test::run_process("bash", words);
}

}  // namespace

TEST_CASE("vgen sample: pictures, grid, codes and a summary", "[apps]") {
  const test::TempDir dir;
  const auto result = run_vgen(sample({"--class-id", "3,7", "--count", "2", "--out", dir / "a",
                                       "--precision", "fp32", "--seed", "5"}));
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.out, Contains("4 images") && Contains("tokens/s"));
  CHECK_THAT(result.err, Contains("sample: 144/144 tokens in ") && Contains("4 images, load ") &&
                             Contains("tokens/s") && Contains("images/s"));
  CHECK(names_in(dir / "a") == std::vector<std::string>{"000000.png", "000001.png", "000002.png",
                                                        "000003.png", "codes.npy", "grid.png",
                                                        "samples.json"});
  const std::string png = test::read_file(dir / "a/000002.png");
  CHECK_THAT(png, Contains("tEXtparameters") && Contains("\"class_id\":7") &&
                      Contains("\"seed\":5") && Contains("\"cfg_scale\":4"));
  CHECK_THAT(test::read_file(dir / "a/samples.json"),
             Contains("\"class_id\": 3") && Contains("\"file\": \"000003.png\""));

  // The same images whatever the batch and the number of threads.
  REQUIRE(run_vgen(sample({"--class-id", "3,7", "--count", "2", "--out", dir / "b", "--precision",
                           "fp32", "--seed", "5", "--batch-size", "1", "--threads", "1"}))
              .exit_code == 0);
  CHECK(test::read_file(dir / "a/codes.npy") == test::read_file(dir / "b/codes.npy"));
  // Older results are kept unless they are to be replaced.
  CHECK_THAT(vgen_error(sample({"--class-id", "1", "--out", dir / "a"})), Contains("use --force"));
  CHECK(run_vgen(sample({"--class-id", "1", "--out", dir / "a", "--force"})).exit_code == 0);
  CHECK(names_in(dir / "a") ==
        std::vector<std::string>{"000000.png", "codes.npy", "grid.png", "samples.json"});
}

TEST_CASE("vgen sample: weights in bf16 and int8 draw the same in any batch", "[apps]") {
  const test::TempDir dir;
  for (const std::string precision : {"bf16", "int8"}) {
    INFO(precision);
    const auto codes = [&](const std::string& out, const std::string& batch_size) {
      const auto result =
          run_vgen(sample({"--class-id", "0-4", "--precision", precision, "--device", "cpu",
                           "--batch-size", batch_size, "--out", out}));
      INFO(result.err);
      REQUIRE(result.exit_code == 0);
      return test::read_file(out + "/codes.npy");
    };
    const std::string one = dir / (precision + "-1"), three = dir / (precision + "-3");
    CHECK(codes(one, "1") == codes(three, "3"));
    const io::Json summary = io::parse_json(test::read_file(one + "/samples.json"));
    CHECK(summary.get_object("settings").get_string("precision") == precision);
    CHECK_THAT(summary.get_string("engine"), Contains(precision + " weights"));
  }
}

TEST_CASE("vgen sample: a class by its name in ImageNet", "[apps]") {
  const test::TempDir dir;
  const std::string gpt = with_class_rows(dir / "gpt.safetensors", 1001);
  const auto with = [&](const std::string& classes, const std::string& out) {
    return Arguments{
        "sample",       gpt,  "--n-head", "2",       "--tokenizer", golden("vq16/ckpt.safetensors"),
        "--image-size", "32", "--out",    dir / out, "--class-id",  classes};
  };
  REQUIRE(run_vgen(with("golden retriever,otter", "name")).exit_code == 0);
  REQUIRE(run_vgen(with("207,360", "label")).exit_code == 0);
  CHECK(test::read_file(dir / "name/codes.npy") == test::read_file(dir / "label/codes.npy"));
  const io::Json summary = io::parse_json(test::read_file(dir / "name/samples.json"));
  const auto& images = summary.get_array("images").items;
  REQUIRE(images.size() == 2);
  CHECK(images[0].get_int("class_id") == 207);
  CHECK(images[0].get_string("class_name") == "golden retriever");
  CHECK(images[1].get_int("class_id") == 360);
  CHECK(vgen_error(with("golden retreiver", "x")) ==
        "class 'golden retreiver': no such class, is it 'golden retriever'?");
  CHECK_THAT(vgen_error(with("1000", "x")), Contains("class 1000: the model has classes 0 to 999"));
}

TEST_CASE("vgen sample: weights that have no null class", "[apps]") {
  const test::TempDir dir;
  const std::string gpt = with_class_rows(dir / "gpt.safetensors", 10);
  test::write_file(dir / "gpt.yaml",
                   "dim: 64\nn_layer: 2\nn_head: 2\nmultiple_of: 64\nvocab_size: 128\n"
                   "num_classes: 10\nblock_size: 4\nclass_dropout_prob: 0\n");
  const auto with = [&](const Arguments& more) {
    Arguments arguments = {
        "sample",     gpt,        "--tokenizer",  golden("vq16/ckpt.safetensors"),
        "--class-id", "9",        "--image-size", "32",
        "--out",      dir / "out"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  // Bare weights: the last row is taken for the null class.
  CHECK(vgen_error(with({"--n-head", "2"})) == "class 9: the model has classes 0 to 8");
  CHECK(vgen_error(with({"--config", dir / "gpt.yaml"})) ==
        "the model was trained with class_dropout_prob 0 and has no null class to guide with; use "
        "a cfg-scale of 1");
  CHECK_FALSE(fs::exists(dir / "out"));
  const auto result = run_vgen(with({"--config", dir / "gpt.yaml", "--cfg-scale", "1"}));
  INFO(result.err);
  CHECK(result.exit_code == 0);
}

TEST_CASE("vgen sample: images for FID, shared by processes, resumed", "[apps]") {
  const test::TempDir dir;
  const auto fid = [&](const std::string& npz, const Arguments& more,
                       const Arguments& environment = {}) {
    Arguments arguments = {"--fid", "70",          "--npz", npz,       "--eval-size",
                           "8",     "--cfg-scale", "1.5",   "--top-k", "0"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_vgen(sample(arguments), environment);
  };
  REQUIRE(fid(dir / "one.npz", {"--batch-size", "16"}).exit_code == 0);
  CHECK_FALSE(fs::exists(dir / "one.npz.parts"));
  // The second of two processes has the last 6 images, and cannot know those of the first.
  REQUIRE(fid(dir / "two.npz", {}, {"RANK=1", "WORLD_SIZE=2"}).exit_code == 0);
  CHECK_FALSE(fs::exists(dir / "two.npz"));
  CHECK(names_in(dir / "two.npz.parts") ==
        std::vector<std::string>{"part_000001.npy", "settings.json"});
  // Other settings would mix images of two kinds.
  CHECK_THAT(fid(dir / "two.npz", {"--seed", "1"}).err,
             Contains("parts drawn with other settings are there"));
  // Going on, now as a single process: only what is missing is drawn, and the file is the same.
  const auto last = fid(dir / "two.npz", {"--batch-size", "64"});
  REQUIRE(last.exit_code == 0);
  CHECK(test::read_file(dir / "one.npz") == test::read_file(dir / "two.npz"));
  CHECK_THAT(fid(dir / "one.npz", {}).err, Contains("is there already"));
}

TEST_CASE("vgen sample: images for FID, killed, out of space, gone on with: the same bytes",
          "[apps]") {
  const test::TempDir dir;
  const std::string npz = dir / "x.npz", folder = npz + ".parts";
  REQUIRE(run_vgen(fid_320(dir / "whole.npz")).exit_code == 0);
  {
    test::Process process(test::vgen_executable(), fid_320(npz));
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    while (!fs::exists(folder + "/part_000000.npy") &&
           std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    process.signal(SIGKILL);
    REQUIRE(process.wait().exit_code == 128 + SIGKILL);
  }
  const auto killed = parts_in(folder);
  REQUIRE(!killed.empty());
  REQUIRE(killed.size() < 5);

  // Not another part fits.
  const auto no_part = run_limited(8, fid_320(npz));
  CHECK(no_part.exit_code == 1);
  CHECK_THAT(no_part.err, Contains("vgen: error: ") && Contains(folder + "/part_00000") &&
                              Contains("File too large"));
  CHECK((parts_in(folder) == killed));

  // All parts fit, the file of all images does not.
  const auto no_npz = run_limited(24, fid_320(npz));
  CHECK(no_npz.exit_code == 1);
  CHECK_THAT(no_npz.err, Contains("vgen: error: " + npz) && Contains("File too large"));
  CHECK_FALSE(fs::exists(npz));
  const auto all = parts_in(folder);
  REQUIRE(all.size() == 5);
  for (const auto& [name, part] : killed) {
    INFO(name);
    CHECK((all.at(name) == part));
  }

  const auto last = run_vgen(fid_320(npz));
  INFO(last.err);
  REQUIRE(last.exit_code == 0);
  CHECK(test::read_file(npz) == test::read_file(dir / "whole.npz"));
  CHECK_FALSE(fs::exists(folder));
}

TEST_CASE("vgen sample: images for FID, only the same settings and models go on", "[apps]") {
  const test::TempDir dir;
  const std::string npz = dir / "x.npz", settings = npz + ".parts/settings.json";
  const std::string gpt = dir / "gpt.safetensors", tokenizer = dir / "vq.safetensors";
  fs::copy_file(golden("gpt_c2i/ckpt.safetensors"), gpt);
  fs::copy_file(golden("vq16/ckpt.safetensors"), tokenizer);
  const auto with = [&](const Arguments& more) {
    Arguments arguments = {"sample", gpt, "--tokenizer", tokenizer, "--fid",   "70",
                           "--npz",  npz, "--eval-size", "8",       "--top-k", "0"};
    const bool has_size = std::find(more.begin(), more.end(), "--image-size") != more.end();
    if (!has_size) arguments.insert(arguments.end(), {"--image-size", "32"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  REQUIRE(run_vgen(with({"--n-head", "2"}), {"RANK=1", "WORLD_SIZE=2"}).exit_code == 0);
  const std::string parts = npz + ".parts";
  REQUIRE(names_in(parts) == Arguments{"part_000001.npy", "settings.json"});
  const auto refused = [&](const Arguments& more) {
    const std::string message = vgen_error(with(more));
    CHECK_THAT(message, Contains(settings + ": parts drawn with other settings are there: ") &&
                            Contains("remove the folder " + parts));
    return message;
  };
  CHECK_THAT(refused({"--n-head", "2", "--seed", "1"}), Contains("seed is 0, expected 1;"));
  CHECK_THAT(refused({"--n-head", "4"}), Contains("n_head is 2, expected 4;"));
  CHECK_THAT(refused({"--n-head", "2", "--weights", "model"}),
             Contains("weights is \"auto\", expected \"model\";"));
  CHECK_THAT(refused({"--n-head", "2", "--tokenizer-weights", "model"}),
             Contains("tokenizer_weights is \"auto\", expected \"model\";"));
  CHECK_THAT(refused({"--n-head", "2", "--tokenizer-precision", "bf16"}),
             Contains("tokenizer_precision is \"fp32\", expected \"bf16\";"));
  const std::string yaml = dir / "gpt.yaml";
  test::write_file(yaml,
                   "dim: 64\nn_layer: 2\nn_head: 2\nmultiple_of: 64\nvocab_size: 128\n"
                   "num_classes: 10\nblock_size: 4\n");
  CHECK_THAT(refused({"--n-head", "2", "--config", yaml}),
             Contains("config is \"\", expected \"" + yaml + "\";"));
  CHECK_THAT(refused({"--n-head", "2", "--image-size", "64"}),
             Contains("image_size is 32, expected 64;"));

  // Other weights under the same name.
  const auto flip_last_byte = [](const std::string& path) {
    std::string bytes = test::read_file(path);
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    test::write_file(path, bytes);
  };
  flip_last_byte(gpt);
  CHECK_THAT(refused({"--n-head", "2"}), Contains("checkpoint_fingerprint is \"gpt-"));
  flip_last_byte(gpt);
  flip_last_byte(tokenizer);
  CHECK_THAT(refused({"--n-head", "2"}), Contains("tokenizer_fingerprint is \"vqgan-"));
  flip_last_byte(tokenizer);
  // What was begun goes on, on any number of processes.
  const Arguments again = with({"--n-head", "2", "--batch-size", "3", "--threads", "1"});
  CHECK(run_vgen(again).exit_code == 0);
  CHECK(fs::exists(npz));
}

TEST_CASE("vgen sample: images for FID, a damaged part is named", "[apps]") {
  const test::TempDir dir;
  const Arguments command = fid_320(dir / "x.npz", {"--rank", "4", "--world-size", "5"});
  REQUIRE(run_vgen(command).exit_code == 0);
  const std::string part = dir / "x.npz.parts/part_000004.npy";
  REQUIRE(fs::file_size(part) > 1000);
  fs::resize_file(part, 1000);
  CHECK_THAT(vgen_error(command), Contains(part + ": ") && Contains("it is cut off"));
  test::write_file(part, "junk");
  CHECK_THAT(vgen_error(command), Contains(part + ": not a .npy file"));
  io::write_npy(part, io::make_array<uint8_t>({1, 8, 8, 3}, std::vector<uint8_t>(192)));
  CHECK(vgen_error(command) ==
        part + ": holds uint8 [1, 8, 8, 3], expected uint8 [64, 8, 8, 3]; remove it");
  fs::remove(part);
  CHECK(run_vgen(command).exit_code == 0);
}

TEST_CASE("vgen sample: a wrong command leaves no parts in the way of the right one", "[apps]") {
  const test::TempDir dir;
  const Arguments fid = {"--fid", "2", "--npz", dir / "x.npz", "--eval-size", "8"};
  const auto with = [&](const Arguments& more) {
    Arguments arguments = fid;
    arguments.insert(arguments.end(), more.begin(), more.end());
    return sample(arguments);
  };
  CHECK_THAT(vgen_error(with({"--top-p", "2"})), Contains("top-p 2"));
  CHECK(names_in(dir.path()).empty());
  CHECK(run_vgen(with({"--top-p", "0.5"})).exit_code == 0);
}

TEST_CASE("vgen sample: an official checkpoint draws the golden's greedy tokens",
          "[apps][golden]") {
  const test::TempDir dir;
  const std::string out = dir / "out";
  const Arguments command = {"sample",       golden("gpt_c2i/ckpt.pt"),
                             "--n-head",     "2",
                             "--tokenizer",  golden("vq16/ckpt.safetensors"),
                             "--class-id",   "3,7,9",  // gen_labels.npy
                             "--cfg-scale",  "4",
                             "--top-k",      "1",
                             "--precision",  "fp32",
                             "--image-size", "96",
                             "--device",     "cpu",
                             "--out",        out};
  // Its training arguments say 64 pixels; the golden's 6 x 6 codes are another grid.
  CHECK(vgen_error(command) ==
        golden("gpt_c2i/ckpt.pt") +
            ": was trained at 64 pixels, 4 x 4 codes (args.image_size), but 96 pixels, 6 x 6 codes "
            "are asked for; leave --image-size out, or allow it with --any-size");
  CHECK_FALSE(fs::exists(out));
  Arguments allowed = command;
  allowed.push_back("--any-size");
  const auto begin = std::chrono::steady_clock::now();
  const auto result = run_vgen(allowed);
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - begin;
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.err, Contains(" W ") && Contains("was trained at 64 pixels, 4 x 4 codes"));
  const io::Array code = io::read_npy(out + "/codes.npy");
  const io::Array expected = io::read_npy(golden("gpt_c2i/greedy_cfg4.npy"));
  CHECK((code.shape == std::vector<int64_t>{3, 6, 6}));
  CHECK(std::ranges::equal(code.as<int64_t>(), expected.as<int32_t>()));

  // The time to the first token counts from the start of the process.
  const io::Json summary = io::parse_json(test::read_file(out + "/samples.json"));
  const double first_token = summary.get_float("seconds_to_first_token");
  CHECK(first_token >= summary.get_float("load_seconds"));
  CHECK(first_token <= wall.count() + 0.02);
  CHECK(first_token + summary.get_float("decode_seconds") <= wall.count() + 0.02);

  // Guidance of the first tokens only.
  Arguments interval = allowed;
  interval.insert(interval.end(), {"--cfg-interval", "3", "--force"});
  REQUIRE(run_vgen(interval).exit_code == 0);
  const io::Array code_interval = io::read_npy(out + "/codes.npy");
  const io::Array expected_interval = io::read_npy(golden("gpt_c2i/greedy_cfg4_interval3.npy"));
  CHECK(std::ranges::equal(code_interval.as<int64_t>(), expected_interval.as<int32_t>()));
  CHECK_FALSE(std::ranges::equal(code_interval.as<int64_t>(), expected.as<int32_t>()));

  // Without a size it is the one of the training arguments.
  Arguments trained = command;
  trained.erase(std::ranges::find(trained, "--image-size"), std::ranges::find(trained, "--device"));
  REQUIRE(run_vgen(trained).exit_code == 1);  // `out` is not empty
  trained.push_back("--force");
  REQUIRE(run_vgen(trained).exit_code == 0);
  CHECK((io::read_npy(out + "/codes.npy").shape == std::vector<int64_t>{3, 4, 4}));
}

TEST_CASE("vgen sample: bad input", "[apps]") {
  const test::TempDir dir;
  const auto error_with = [&](const Arguments& more) {
    Arguments arguments = more;
    arguments.insert(arguments.end(), {"--out", dir / "out"});
    const std::string message = vgen_error(sample(arguments));
    CHECK_FALSE(fs::exists(dir / "out"));  // nothing is left behind
    return message;
  };
  CHECK(error_with({"--class-id", "10"}) == "class 10: the model has classes 0 to 9");
  CHECK_THAT(error_with({"--class-id", "otter"}), Contains("--class-names FILE"));
  CHECK(error_with({"--class-id", "1", "--top-k", "-1"}) ==
        "top-k -1: expected at least 0, 0 = off");
  CHECK(error_with({"--class-id", "1", "--top-p", "0"}) ==
        "top-p 0: expected above 0 and at most 1, 1 = off");
  CHECK_THAT(error_with({"--class-id", "1", "--top-p", "1.5"}), Contains("top-p 1.5"));
  CHECK(error_with({"--class-id", "1", "--cfg-scale", "-1"}) ==
        "cfg-scale -1: expected at least 0");
  CHECK_THAT(error_with({"--class-id", "1", "--temperature", "-2"}), Contains("temperature -2"));
  CHECK_THAT(error_with({"--class-id", "1", "--count", "0"}), Contains("count 0"));
  CHECK(error_with({"--class-id", "1", "--batch-size", "0"}) ==
        "batch-size 0: expected at least 1");
  CHECK_THAT(error_with({"--class-id", "1", "--image-size", "97"}),
             Contains("image-size 97: expected a multiple of the tokenizer's step, 16"));
  CHECK_THAT(vgen_error(sample({"--class-id", "1", "--image-size", "12", "--out", dir / "out"},
                               golden("vq_ema/ckpt.pt"))),
             Contains("has a vocabulary of 128, but the codebook of"));
  CHECK(run_vgen(sample({"--out", dir / "out"})).exit_code == 2);
  CHECK(run_vgen(sample({"--fid", "10"})).exit_code == 2);
}

}  // namespace vgen
