#include <memory>

#include "bench_options.h"
#include "commands.h"
#include "vgen/bench/gpt_bench.h"
#include "vgen/bench/gpt_train_bench.h"

namespace vgen::apps {

namespace {
struct Options {
  bench::GptBenchConfig config;
  bool is_json = false;
};

struct TrainOptions {
  bench::GptTrainBenchConfig config;
  bool is_json = false;
};
}  // namespace

void add_bench_gpt_train(CLI::App& bench) {
  auto options = std::make_shared<TrainOptions>();
  bench::GptTrainBenchConfig& config = options->config;
  auto* command = bench.add_subcommand("gpt-train", "Training steps of LlamaGen's GPT");
  command->add_option("--size", config.size, "B, L, XL, XXL, XXXL, 1B, 3B, 7B; random weights")
      ->capture_default_str();
  command->add_option("--precision", config.precisions, "What the model computes in")
      ->delimiter(',')
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_option("--batch", config.batch, "Samples of a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--tokens", config.num_tokens, "Tokens of a sample, a square number")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--repeats", config.repeats, "Timed steps after one that is not")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_machine_options(*command, config, options->is_json);
  command->footer("Example:\n  vgen bench gpt-train --size B --batch 8 --precision fp32\n");
  command->callback(
      [options] { print_report(bench::bench_gpt_train(options->config), options->is_json); });
}

void add_bench_gpt(CLI::App& bench) {
  auto options = std::make_shared<Options>();
  bench::GptBenchConfig& config = options->config;
  auto* command = bench.add_subcommand("gpt", "Drawing tokens with LlamaGen's GPT");
  command->add_option("--size", config.size, "B, L, XL, XXL, XXXL, 1B, 3B, 7B; random weights")
      ->capture_default_str();
  command->add_option("--checkpoint", config.checkpoint, "Weights of a file instead");
  command->add_option("--precision", config.precisions, "What weights are stored in")
      ->delimiter(',')
      ->check(CLI::IsMember({"fp32", "bf16", "int8"}))
      ->capture_default_str();
  command->add_option("--batch", config.batches, "Images at once")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
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
