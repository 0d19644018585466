#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "vgen/core/strings.h"
#include "vgen/train/run.h"

namespace vgen::apps {

namespace {

struct Options {
  train::TrainOptions train;
  std::string seed, device, precision;
  bool must_print_config = false;
};

void print_result(const train::TrainResult& result) {
  std::printf("%s: %s of %s steps", result.run_dir.c_str(),
              format_count(static_cast<uint64_t>(result.steps_done)).c_str(),
              format_count(static_cast<uint64_t>(result.total_steps)).c_str());
  for (const auto& [name, value] : result.metrics) {
    std::printf(", %s %s", name.c_str(), format_fixed(value, 4).c_str());
  }
  std::printf("\n");
}

}  // namespace

void add_train(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("train", "Train what a config describes");
  command->add_option("config", options->train.config, "YAML file")->required();
  command->add_option("--run-dir", options->train.run_dir,
                      "Where everything is written; by default runs/<name of the config>");
  command
      ->add_option("--resume", options->train.resume,
                   "auto: go on from the newest valid checkpoint of the run folder, if any")
      ->check(CLI::IsMember({"never", "auto"}))
      ->capture_default_str();
  command
      ->add_option("--set", options->train.overrides,
                   "Override a value of the config: --set optimizer.lr=1e-4; may be repeated")
      ->allow_extra_args(false);
  command->add_option("--seed", options->seed, "Same as --set seed=N");
  command->add_option("--device", options->device, "Same as --set device=D: auto, cpu, cuda:N");
  command->add_option("--precision", options->precision,
                      "Same as --set precision=P: fp32, bf16, fp16");
  command->add_flag("--print-config", options->must_print_config,
                    "Print the resolved config and stop");
  command->footer(
      "Example:\n"
      "  vgen train configs/quickstart/tokenizer-digits.yaml --run-dir runs/digits \\\n"
      "    --set optimizer.lr=2e-4 --resume auto\n"
      "SIGINT and SIGTERM finish the current step, save, and exit with 0.\n");
  command->callback([options] {
    auto& overrides = options->train.overrides;
    if (!options->seed.empty()) overrides.push_back("seed=" + options->seed);
    if (!options->device.empty()) overrides.push_back("device=" + options->device);
    if (!options->precision.empty()) overrides.push_back("precision=" + options->precision);
    if (options->must_print_config) {
      std::fputs(train::resolved_config(options->train).c_str(), stdout);
      return;
    }
    const train::TrainResult result = train::run(options->train);
    if (result.rank == 0) print_result(result);
  });
}

}  // namespace vgen::apps
