#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "commands.h"
#include "vgen/core/error.h"
#include "vgen/eval/class_consistency.h"
#include "vgen/eval/precision.h"
#include "vgen/io/atomic_file.h"

namespace vgen::apps {

namespace {

/// Where a result also goes.
struct ResultFile {
  std::string path;
  bool must_overwrite = false;

  void add_options(CLI::App& command) {
    command.add_option("--out", path, "Also write the result to this JSON file");
    command.add_flag("--force", must_overwrite, "Replace the file where there is one");
  }
  /// Before the work begins: nobody waits for a result that cannot be written.
  void check() const {
    if (path.empty()) return;
    require(must_overwrite || !std::filesystem::exists(path), ErrorCode::kInvalidArgument, path,
            ": is there already; use --force to replace it, or another --out");
    const std::string folder = std::filesystem::path(path).parent_path().string();
    require(folder.empty() || std::filesystem::is_directory(folder), ErrorCode::kNotFound, folder,
            ": no such folder, for --out ", path);
  }
  void write(const io::Json& json) const {
    if (!path.empty()) io::write_file_atomically(path, io::dump_json(json, 1) + "\n");
  }
};

struct ConsistencyOptions {
  eval::ConsistencyConfig config;
  ResultFile out;
};

void run_consistency(ConsistencyOptions& options) {
  options.out.check();
  options.config.val.path = options.config.train.path;
  const eval::ConsistencyResult result = eval::class_consistency(options.config);
  std::fputs(eval::format_result(result).c_str(), stdout);
  options.out.write(eval::result_json(result));
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
  options->out.add_options(*command);
  command->add_option("--threads", config.threads, "0 = one per core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->footer(
      "Pixels are compared as they are: for small, simple images such as digits.\n"
      "Example:\n  vgen evaluate consistency samples data/digits.tar.gz\n");
  command->callback([options] { run_consistency(*options); });
}

struct PrecisionOptions {
  eval::PrecisionConfig config;
  ResultFile out;
};

void run_precision(PrecisionOptions& options) {
  options.out.check();
  const eval::PrecisionResult result = eval::compare_precisions(options.config);
  std::fputs(eval::format_result(result).c_str(), stdout);
  options.out.write(eval::result_json(result));
}

void add_precision(CLI::App& app) {
  auto options = std::make_shared<PrecisionOptions>();
  eval::PrecisionConfig& config = options->config;
  auto* command =
      app.add_subcommand("precision", "What bf16 and int8 weights change in a GPT's predictions");
  command
      ->add_option("checkpoint", config.checkpoint,
                   "Run folder, checkpoint folder, or a GPT's .pt or .safetensors")
      ->required();
  command->add_option("codes", config.codes, "Folder of codes, of `vgen extract`")->required();
  command
      ->add_option("--weights", config.gpt.weights,
                   "auto (EMA of a run; of a .pt file what official samplers take), ema, model, or "
                   "the name of a dict in a .pt file")
      ->capture_default_str();
  command->add_option("--config", config.gpt.config,
                      "YAML of the GPT, or B, L, XL, XXL, XXXL, 1B, 3B, 7B");
  command->add_option("--n-head", config.gpt.n_head,
                      "Attention heads, where neither config nor published size tells");
  command->add_option("--precision", config.precisions, "To compare with fp32")
      ->delimiter(',')
      ->check(CLI::IsMember({"fp32", "bf16", "int8"}))
      ->capture_default_str();
  command->add_option("--images", config.num_images, "Of the codes, from the first on")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--batch-size", config.batch_size, "Images at a time")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--threads", config.threads, "0 = one per core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  options->out.add_options(*command);
  command->footer("Example:\n  vgen evaluate precision runs/gpt codes/val --precision int8\n");
  command->callback([options] { run_precision(*options); });
}

}  // namespace

void add_evaluate(CLI::App& app) {
  auto* command =
      app.add_subcommand("evaluate", "Measure generated images and the models behind them");
  command->require_subcommand(1);
  command->footer("Example:\n  vgen evaluate consistency samples data/digits.tar.gz\n");
  add_consistency(*command);
  add_precision(*command);
}

}  // namespace vgen::apps
