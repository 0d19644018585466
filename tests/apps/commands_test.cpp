// The commands of the executable: help, completion, exit codes.

#include <catch2/catch.hpp>
#include <filesystem>
#include <vector>

#include "support/process.h"
#include "support/support.h"
#include "vgen/core/strings.h"
#include "vgen/io/json.h"

using namespace vgen;

TEST_CASE("vgen: every command has a help with an example", "[apps]") {
  const test::ProcessResult help = test::run_vgen({"--help"});
  REQUIRE(help.exit_code == 0);
  const test::ProcessResult completion = test::run_vgen({"completion"});
  REQUIRE(completion.exit_code == 0);
  // The commands that completion offers after a mark of its script.
  const auto commands_after = [&](const std::string& mark) {
    const size_t begin = completion.out.find(mark + " words=\"");
    REQUIRE(begin != std::string::npos);
    const size_t first = completion.out.find('"', begin) + 1;
    std::vector<std::string> words =
        split(completion.out.substr(first, completion.out.find('"', first) - first), ' ');
    std::erase_if(words, [](const std::string& word) { return word.starts_with("--"); });
    return words;
  };
  const auto check_help = [](std::vector<std::string> command) {
    INFO(join(command, " "));
    command.push_back("--help");
    const test::ProcessResult result = test::run_vgen(command);
    CHECK(result.exit_code == 0);
    CHECK_THAT(result.out, Catch::Contains("Example"));
  };
  const std::vector<std::string> commands = commands_after("1)");
  CHECK(commands.size() == 12);
  size_t parts = 0;
  for (const std::string& name : commands) {
    CHECK_THAT(help.out, Catch::Contains(name));
    check_help({name});
    for (const std::string& part : commands_after(" " + name + ")")) {
      check_help({name, part});
      ++parts;
    }
  }
  CHECK(parts == 15);
}

TEST_CASE("vgen: a wrong command line exits with 2, an error with 1", "[apps]") {
  CHECK(test::run_vgen({}).exit_code == 2);
  const auto paint = test::run_vgen({"paint", "it"});
  CHECK(paint.exit_code == 2);
  CHECK(paint.err == "vgen: error: there is no command 'paint'; see `vgen --help`\n");
  CHECK(test::run_vgen({"inspect"}).exit_code == 2);
  CHECK(test::run_vgen({"inspect", "a.pt", "--sets"}).exit_code == 2);
  CHECK_THAT(test::vgen_error({"inspect", "/no/such.pt"}), Catch::Contains("/no/such.pt"));
}

TEST_CASE("vgen: a path that the system cannot follow is named in one line", "[apps]") {
  const test::TempDir temp;
  const std::string circle = temp / "a";
  std::filesystem::create_symlink("b", circle);
  std::filesystem::create_symlink("a", temp / "b");
  const std::vector<std::vector<std::string>> commands = {
      {"inspect", circle},
      {"convert", circle, temp / "out.safetensors"},
      {"data", "stats", circle},
      {"data", "synth", circle},
      {"train", circle},
      {"reconstruct", circle, circle, "--out", temp / "out"},
      {"sample", circle, "--tokenizer", circle, "--class-id", "1", "--out", temp / "out"},
  };
  for (const auto& command : commands) {
    INFO(command[0]);
    CHECK_THAT(test::vgen_error(command),
               Catch::Contains(circle) && Catch::Contains("Too many levels of symbolic links"));
  }
}

TEST_CASE("vgen doctor: says what draws", "[apps]") {
  // A path for the CPU or one for a GPU: tests run on both.
  const auto check_path = [](const std::string& text) {
    CHECK_THAT(text,
               Catch::Contains("cpu, portable kernels") || Catch::Contains("cpu, avx2 kernels") ||
                   Catch::Contains("cpu, avx512 kernels") || Catch::Contains("cpu, amx kernels") ||
                   Catch::Contains("cuda:0, CUDA graphs"));
  };
  const std::string text = test::run_vgen({"doctor"}).out;
  CHECK_THAT(text, Catch::Contains("drawing"));
  check_path(text);
  const auto report = io::parse_json(test::run_vgen({"doctor", "--json"}).out);
  check_path(report.get_object("sections").get_object("in use").get_string("drawing"));
  // Without a GPU to be seen it is the CPU.
  const std::string hidden = test::run_vgen({"doctor"}, {"CUDA_VISIBLE_DEVICES="}).out;
  check_path(hidden);
  CHECK_THAT(hidden, !Catch::Contains("CUDA graphs"));
}

TEST_CASE("vgen: threads that wait soon sleep, unless the user says otherwise", "[apps]") {
  CHECK_THAT(test::run_vgen({"doctor"}).out, Catch::Contains("spin for 10000 turns, then sleep"));
  CHECK_THAT(test::run_vgen({"doctor"}, {"OMP_WAIT_POLICY=passive"}).out,
             Catch::Contains("OMP_WAIT_POLICY=passive"));
}
