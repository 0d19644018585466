#include <memory>

#include "bench_options.h"
#include "commands.h"
#include "vgen/bench/gpt_bench.h"
#include "vgen/bench/train_bench.h"

namespace vgen::apps {

namespace {
struct Options {
  bench::GptBenchConfig config;
  bool is_json = false;
};

struct TrainOptions {
  bench::TrainBenchConfig config;
  bool is_json = false;
};
}  // namespace

namespace {

std::shared_ptr<TrainOptions> add_train_options(CLI::App& command) {
  auto options = std::make_shared<TrainOptions>();
  bench::TrainBenchConfig& config = options->config;
  command.add_option("--precision", config.precisions, "What the model computes in")
      ->delimiter(',')
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command.add_option("--batch", config.batch, "Samples of a step")->check(CLI::PositiveNumber);
  command.add_option("--repeats", config.repeats, "Timed steps after one that is not")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_machine_options(command, config, options->is_json);
  return options;
}

}  // namespace

void add_bench_gpt_train(CLI::App& bench) {
  auto* command = bench.add_subcommand("gpt-train", "Training steps of LlamaGen's GPT");
  const auto options = add_train_options(*command);
  bench::TrainBenchConfig& config = options->config;
  command->add_option("--size", config.size, "B, L, XL, XXL, XXXL, 1B, 3B, 7B; random weights")
      ->capture_default_str();
  command->add_option("--tokens", config.num_tokens, "Tokens of a sample, a square number")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->footer("Example:\n  vgen bench gpt-train --size B --batch 8 --precision fp32\n");
  command->callback(
      [options] { print_report(bench::bench_gpt_train(options->config), options->is_json); });
}

void add_bench_var_train(CLI::App& bench) {
  auto* command = bench.add_subcommand("var-train", "Training steps of VAR, from codes");
  const auto options = add_train_options(*command);
  bench::TrainBenchConfig& config = options->config;
  config.size = "d16";
  config.batch = 2;
  command->add_option("--size", config.size, "d12, d16, d20, d24, d30, d36-s; random weights")
      ->capture_default_str();
  command->footer("Example:\n  vgen bench var-train --size d16 --batch 2 --precision fp32\n");
  command->callback(
      [options] { print_report(bench::bench_var_train(options->config), options->is_json); });
}

void add_bench_gpt(CLI::App& bench) {
  auto options = std::make_shared<Options>();
  bench::GptBenchConfig& config = options->config;
  auto* command = bench.add_subcommand("gpt", "Drawing tokens with LlamaGen's GPT");
  command->add_option("--size", config.size, "B, L, XL, XXL, XXXL, 1B, 3B, 7B; random weights")
      ->capture_default_str();
  command->add_option("--checkpoint", config.checkpoint, "Weights of a file instead");
  add_drawing_options(*command, config);
  command->add_option("--cfg-scale", config.cfg_scale, "Guidance, up to 1 = off")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-k", config.top_k, "0 = off")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--tokens", config.num_tokens, "Tokens of an image, a square number")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--repeats", config.repeats,
                   "Timed runs after one that is not; the median counts; 0: one, cold")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_machine_options(*command, config, options->is_json);
  command->footer("Example:\n  vgen bench gpt --size B --precision bf16,int8 --batch 1,8\n");
  command->callback(
      [options] { print_report(bench::bench_gpt(options->config), options->is_json); });
}

}  // namespace vgen::apps
