#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "vgen/eval/class_consistency.h"
#include "vgen/io/atomic_file.h"

namespace vgen::apps {

namespace {

struct ConsistencyOptions {
  eval::ConsistencyConfig config;
  std::string out;
};

void run_consistency(ConsistencyOptions& options) {
  options.config.val.path = options.config.train.path;
  const eval::ConsistencyResult result = eval::class_consistency(options.config);
  if (!options.out.empty()) {
    io::write_file_atomically(options.out, io::dump_json(eval::result_json(result), 1) + "\n");
  }
  std::fputs(eval::format_result(result).c_str(), stdout);
}

void add_consistency(CLI::App& app) {
  auto options = std::make_shared<ConsistencyOptions>();
  eval::ConsistencyConfig& config = options->config;
  config.train.split = "train";
  config.val.split = "val";
  auto* command = app.add_subcommand(
      "consistency", "Does the nearest real image have the class that a sample was asked for?");
  command->add_option("samples", config.samples, "--out folder of `vgen sample`")->required();
  command->add_option("real", config.train.path, "Dataset of real images in class folders")
      ->required();
  command->add_option("--split", config.train.split, "Folder in it that the classifier looks up")
      ->capture_default_str();
  command->add_option("--val-split", config.val.split, "Folder that measures the classifier")
      ->capture_default_str();
  command->add_option("--out", options->out, "Also write the result to this JSON file");
  command->add_option("--threads", config.threads, "0 = one per core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->footer(
      "Pixels are compared as they are: for small, simple images such as digits.\n"
      "Example:\n  vgen evaluate consistency samples data/digits.tar.gz\n");
  command->callback([options] { run_consistency(*options); });
}

}  // namespace

void add_evaluate(CLI::App& app) {
  auto* command = app.add_subcommand("evaluate", "Measure generated images");
  command->require_subcommand(1);
  command->footer("Example:\n  vgen evaluate consistency samples data/digits.tar.gz\n");
  add_consistency(*command);
}

}  // namespace vgen::apps
