#include <memory>

#include "bench_options.h"
#include "commands.h"
#include "vgen/bench/var_attention_bench.h"
#include "vgen/bench/var_bench.h"

namespace vgen::apps {

namespace {
struct Options {
  bench::VarBenchConfig config;
  bool is_json = false;
};

struct AttentionOptions {
  bench::VarAttentionBenchConfig config;
  bool is_json = false;
};
}  // namespace

void add_bench_var(CLI::App& bench) {
  auto options = std::make_shared<Options>();
  bench::VarBenchConfig& config = options->config;
  auto* command = bench.add_subcommand("var", "Drawing images with VAR, decoding included");
  command->add_option("--size", config.size, "d12, d16, d20, d24, d30, d36-s; random weights")
      ->capture_default_str();
  command
      ->add_option("--scales", config.patch_nums,
                   "Sides of the scales of random weights, not its own")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  command->add_option("--checkpoint", config.checkpoint, "Weights of a file instead");
  command->add_option("--tokenizer", config.tokenizer, "The same of the tokenizer");
  add_drawing_options(*command, config);
  command->add_option("--cfg-scale", config.cfg_scale, "Guidance, 0 = off")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-k", config.top_k, "0 = off")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-p", config.top_p, "1 = off")->capture_default_str();
  command->add_option("--repeats", config.repeats, "Timed runs after one that is not")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_machine_options(*command, config, options->is_json);
  command->footer("Example:\n  vgen bench var --size d16 --precision fp32,int8 --batch 1,4\n");
  command->callback(
      [options] { print_report(bench::bench_var(options->config), options->is_json); });
}

void add_bench_var_attention(CLI::App& bench) {
  auto options = std::make_shared<AttentionOptions>();
  bench::VarAttentionBenchConfig& config = options->config;
  auto* command = bench.add_subcommand(
      "var-attention", "A layer of VAR's attention in training, its scales cut in several ways");
  command->add_option("--size", config.size, "d12, d16, d20, d24, d30, d36-s; random weights")
      ->capture_default_str();
  command->add_option("--precision", config.precisions, "What the layer computes in")
      ->delimiter(',')
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_option("--batch", config.batch, "Samples of a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--masked", config.max_masked_tokens,
                   "Queries that share a masked call: 1 = each scale alone, 0 = all")
      ->delimiter(',')
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--repeats", config.repeats, "Timed runs after one that is not")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_machine_options(*command, config, options->is_json);
  command->footer("Example:\n  vgen bench var-attention --precision fp32,bf16 --batch 2\n");
  command->callback(
      [options] { print_report(bench::bench_var_attention(options->config), options->is_json); });
}

}  // namespace vgen::apps
