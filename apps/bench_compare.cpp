#include <memory>

#include "bench_options.h"
#include "commands.h"
#include "vgen/bench/compare_bench.h"

namespace vgen::apps {

namespace {
struct Options {
  bench::CompareBenchConfig config;
  bool is_json = false;
};
}  // namespace

void add_bench_compare(CLI::App& bench) {
  auto options = std::make_shared<Options>();
  bench::CompareBenchConfig& config = options->config;
  auto* command = bench.add_subcommand(
      "compare", "LlamaGen's GPT against VAR at the same size of image, decoding included");
  command->add_option("--gpt-size", config.gpt_size, "B, L, XL, XXL, XXXL, 1B, 3B, 7B")
      ->capture_default_str();
  command->add_option("--var-size", config.var_size, "d12, d16, d20, d24, d30, d36-s")
      ->capture_default_str();
  command
      ->add_option("--scales", config.patch_nums,
                   "Sides of VAR's scales instead of its own; the last is the GPT's grid")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  add_drawing_options(*command, config);
  command->add_option("--repeats", config.repeats, "Timed runs after one that is not")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_machine_options(*command, config, options->is_json);
  command->footer(
      "Random weights, guidance on both sides: two sequences an image.\n"
      "Example:\n  vgen bench compare --gpt-size L --var-size d16 --precision bf16 --batch 1,4\n");
  command->callback(
      [options] { print_report(bench::bench_compare(options->config), options->is_json); });
}

}  // namespace vgen::apps
