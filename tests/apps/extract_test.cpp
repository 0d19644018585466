// vgen extract as a user runs it: interrupted, out of space, on several ranks, and what it refuses.

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

using namespace vgen;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

/// Digits at 32 pixels, in shards of 10.
std::vector<std::string> words(const std::string& out, const std::vector<std::string>& more = {},
                               const std::string& limit = "40") {
  std::vector<std::string> all = {"extract",
                                  test::golden("vq_ema/ckpt.pt"),
                                  test::project_path("data/digits.tar.gz"),
                                  "--split",
                                  "val",
                                  "--image-size",
                                  "32",
                                  "--crops",
                                  "center_flip",
                                  "--shard-size",
                                  "10",
                                  "--limit",
                                  limit,
                                  "--threads",
                                  "1",
                                  "--device",
                                  "cpu",
                                  "--out",
                                  out};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename()] = test::read_file(entry.path().string());
  }
  return files;
}

size_t count_shards(const std::string& folder) {
  std::error_code error;
  size_t count = 0;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    count += entry.path().filename().string().starts_with("shard-");
  }
  return count;
}

}  // namespace

TEST_CASE("vgen extract: killed, out of space, gone on with: the same bytes", "[apps]") {
  const test::TempDir temp;
  const std::string whole = temp / "whole", out = temp / "out";
  const test::ProcessResult result = test::run_vgen(words(whole, {}, "160"));
  CAPTURE(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.out,
             Contains("160 images in 16 shards (16 new), 0 left out, tokenizer vqgan-"));
  CHECK_THAT(result.err, Contains("extract: 160/160 images") && Contains("images/s"));
  const auto expected = contents(whole);
  REQUIRE(expected.size() == 17);

  {
    test::Process process(test::vgen_executable(), words(out, {}, "160"));
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    while (count_shards(out) < 3 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    process.signal(SIGKILL);
    REQUIRE(process.wait().exit_code == 128 + SIGKILL);
  }
  const size_t finished = count_shards(out);
  REQUIRE(finished >= 3);
  REQUIRE(finished < 16);
  CHECK_FALSE(fs::exists(out + "/index.json"));

  // No shard fits: the disk is as good as full.
  std::string command = "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"";
  std::vector<std::string> limited = {"-c", command, test::vgen_executable()};
  for (const std::string& word : words(out, {}, "160")) limited.push_back(word);
  const test::ProcessResult full = test::run_process("bash", limited);
  CHECK(full.exit_code == 1);
  CHECK_THAT(full.err, Contains("vgen: error: ") && Contains(out + "/shard-") &&
                           Contains("File too large") && Contains("ulimit -f"));
  CHECK(count_shards(out) == finished);

  const test::ProcessResult again = test::run_vgen(words(out, {}, "160"));
  REQUIRE(again.exit_code == 0);
  CHECK_THAT(again.err, Contains(str_cat("extract: ", finished, " shards with ", 10 * finished,
                                         " of 160 images are there already")));
  CHECK_THAT(again.out, Contains(str_cat("16 shards (", 16 - finished, " new)")));
  CHECK((contents(out) == expected));
}

TEST_CASE("vgen extract: ranks share the work", "[apps]") {
  const test::TempDir temp;
  const std::string whole = temp / "whole", out = temp / "out";
  const std::vector<std::string> few = {"--json"};
  REQUIRE(test::run_vgen(words(whole, few)).exit_code == 0);
  {
    test::Process first(test::vgen_executable(), words(out, few), {"RANK=0", "WORLD_SIZE=2"});
    test::Process second(test::vgen_executable(), words(out, few), {"RANK=1", "WORLD_SIZE=2"});
    const test::ProcessResult results[] = {first.wait(), second.wait()};
    for (const auto& result : results) {
      CAPTURE(result.err);
      CHECK(result.exit_code == 0);
    }
    CHECK_THAT(results[0].out + results[1].out, Contains("\"complete\": true"));
  }
  CHECK((contents(out) == contents(whole)));
  CHECK_THAT(test::vgen_error(words(out, few), {"RANK=2", "WORLD_SIZE=2"}),
             Contains("RANK 2, WORLD_SIZE 2"));
}

TEST_CASE("vgen extract: layout, labels and index cache of the images", "[apps]") {
  const test::TempDir temp;
  const auto extract = [&](const std::string& input, const std::string& out,
                           std::vector<std::string> more) {
    const std::vector<std::string> common = {"extract", test::golden("vq_ema/ckpt.pt"),
                                             input,     "--image-size",
                                             "32",      "--threads",
                                             "1",       "--device",
                                             "cpu",     "--out",
                                             out};
    more.insert(more.begin(), common.begin(), common.end());
    return more;
  };
  const auto classes_of = [](const std::string& out) {
    std::vector<std::string> names;
    const std::string text = test::read_file(out + "/index.json");
    const io::Json index = io::parse_json(text);
    for (const io::Json& name : index.get_array("classes").items) names.push_back(name.text);
    return names;
  };
  const std::string photos = test::project_path("data/photos");
  const auto run = [](const std::vector<std::string>& words) {
    const test::ProcessResult result = test::run_vgen(words);
    CAPTURE(result.err);
    CHECK(result.exit_code == 0);
  };
  run(extract(photos, temp / "classes", {"--index-cache", temp / "cache"}));
  CHECK(classes_of(temp / "classes").size() == 8);
  CHECK(test::files_in(temp / "cache").size() == 1);
  run(extract(photos, temp / "flat", {"--layout", "flat", "--index-cache", "off"}));
  CHECK(classes_of(temp / "flat").empty());

  fs::create_directory(temp / "pictures");
  fs::copy(photos + "/brick/brick.jpg", temp / "pictures/1.jpg");
  fs::copy(photos + "/grass/grass.jpg", temp / "pictures/2.jpg");
  test::write_file(temp / "labels.txt", "1.jpg wall\n2.jpg lawn\n");
  run(extract(temp / "pictures", temp / "labelled", {"--labels", temp / "labels.txt"}));
  CHECK(classes_of(temp / "labelled") == std::vector<std::string>{"lawn", "wall"});
  CHECK_THAT(test::vgen_error(extract(temp / "pictures", temp / "x", {"--layout", "classes"})),
             Contains("no class folders in it; expected <class>/<image>, or set layout: flat"));
  CHECK_THAT(test::vgen_error(extract(photos, temp / "x", {"--layout", "tree"})),
             Contains("layout 'tree'"));
}

TEST_CASE("vgen extract: what it refuses", "[apps]") {
  const test::TempDir temp;
  const std::string out = temp / "out";
  REQUIRE(test::run_vgen(words(out)).exit_code == 0);
  const auto before = contents(out);
  CHECK_THAT(test::vgen_error(words(out, {"--precision", "bf16"})),
             Contains(out + ": holds codes of another extraction: precision is \"fp32\", expected "
                            "\"bf16\"; choose another --out"));
  // The weights are random: the check must not be fooled.
  CHECK_THAT(test::vgen_error(words(out, {"--verify"})),
             Contains("or the tokenizer is not trained"));
  CHECK((contents(out) == before));
  CHECK_THAT(test::vgen_error({"extract", temp / "none.pt", test::project_path("data/photos"),
                               "--out", temp / "x"}),
             Contains("none.pt"));
  CHECK_THAT(test::vgen_error(
                 {"extract", test::golden("vq_ema/ckpt.pt"), temp / "none", "--out", temp / "x"}),
             Contains(temp / "none") && Contains("no such folder"));
  CHECK(test::run_vgen({"extract", test::golden("vq_ema/ckpt.pt"), temp / "none"}).exit_code == 2);
  CHECK(test::run_vgen(words(out, {"--on-broken", "ignore"})).exit_code == 2);
}
