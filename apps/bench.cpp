#include <memory>

#include "bench_options.h"
#include "commands.h"
#include "vgen/bench/tokenizer_bench.h"

namespace vgen::apps {

namespace {
struct Options {
  bench::TokenizerBenchConfig config;
  bool is_json = false;
};

void add_bench_tokenizer(CLI::App& app) {
  auto options = std::make_shared<Options>();
  bench::TokenizerBenchConfig& config = options->config;
  auto* command = app.add_subcommand(
      "tokenizer", "Encoding, decoding and training of the VQGAN, random weights");
  command->add_option("--weights", config.weights,
                      "File or folder with weights of that model, for encode and decode; else "
                      "random ones");
  command->add_option("--model", config.model, "VQ-16 or VQ-8")
      ->check(CLI::IsMember({"VQ-16", "VQ-8"}))
      ->capture_default_str();
  command
      ->add_option("--mode", config.modes,
                   "encode, decode, train, search (nearest code, against the plain formula)")
      ->delimiter(',')
      ->check(CLI::IsMember({"encode", "decode", "train", "search"}))
      ->capture_default_str();
  command->add_option("--batch", config.batches, "Images at once in encode, decode and search")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--train-batch", config.train_batch, "Images of a training step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--image-size", config.image_size, "Side of the images")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--precision", config.precisions, "What the model computes in")
      ->delimiter(',')
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_option("--repeats", config.repeats, "Timed runs of each case; the median counts")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_machine_options(*command, config, options->is_json);
  command->footer(
      "Examples:\n"
      "  vgen bench tokenizer --mode decode --batch 1,8 --precision bf16\n"
      "  vgen bench tokenizer --mode search --json\n");
  command->callback(
      [options] { print_report(bench::bench_tokenizer(options->config), options->is_json); });
}
}  // namespace

void add_bench(CLI::App& app) {
  auto* command = app.add_subcommand("bench", "Measure the speed of a part on this machine");
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  vgen bench tokenizer --mode encode --batch 1\n"
      "  vgen bench gpt --size B --precision bf16\n"
      "  vgen bench compare --precision bf16\n"
      "  vgen bench collectives --ranks 2,3,4\n");
  add_bench_tokenizer(*command);
  add_bench_gpt(*command);
  add_bench_gpt_train(*command);
  add_bench_var(*command);
  add_bench_var_train(*command);
  add_bench_var_attention(*command);
  add_bench_compare(*command);
  add_bench_collectives(*command);
}

}  // namespace vgen::apps
