#include "vgen/eval/reconstruct.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "device_option.h"

namespace vgen::apps {

namespace {

struct Options {
  eval::ReconstructConfig config;
  bool is_json = false;
};

void add_model_options(CLI::App& command, infer::TokenizerOptions& tokenizer) {
  command
      .add_option("--weights", tokenizer.weights,
                  "auto (EMA if there are any), ema, model, or the name of a dict in a .pt file")
      ->capture_default_str();
  command.add_option(
      "--config", tokenizer.config,
      "YAML of the model, or VQ-16, VQ-8; default: of the run, or read off the weights");
  add_device_options(command, tokenizer.device);
  command.add_option("--precision", tokenizer.precision, "What the model computes in")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
}

void add_data_options(CLI::App& command, eval::ReconstructConfig& config) {
  command.add_option("--split", config.split, "Folder inside the folders and tars: val");
  command.add_option("--limit", config.limit, "Take the first images only, 0 = all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option("--image-size", config.image_size,
                  "Side of the centre crop, 0 = of the run's config, else 256")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option("--eval-size", config.eval_size,
                  "Resize originals and copies to this side, bicubic; 0 = as they are")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--min-side", config.min_side, "Smaller images count as broken")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--on-broken", config.on_broken, "Broken images: skip (and count) or fail")
      ->check(CLI::IsMember({"skip", "fail"}))
      ->capture_default_str();
  command.add_option("--batch-size", config.batch_size, "Images at once")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--threads", config.threads, "Of the model, 0 = one per core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--workers", config.workers, "Threads that decode images")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
}

}  // namespace

void add_reconstruct(CLI::App& app) {
  auto options = std::make_shared<Options>();
  eval::ReconstructConfig& config = options->config;
  auto* command =
      app.add_subcommand("reconstruct", "Encode and decode images, and measure what survives");
  command
      ->add_option("model", config.model,
                   "Run folder, checkpoint folder, or a tokenizer's .pt or .safetensors")
      ->required();
  command->add_option("inputs", config.inputs, "Images, folders, .tar or .tar.gz")->required();
  command->add_option("--out", config.out,
                      "Folder for pictures, codes.npy and metrics.json; default: only measure");
  command->add_flag("--force", config.must_overwrite, "Replace older results in --out");
  add_model_options(*command, config.tokenizer);
  add_data_options(*command, config);
  command->add_option("--grid", config.grid_pairs, "Pairs in grid.png, 0 = no grid")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--lpips-vgg", config.lpips_vgg, "Measure LPIPS: weights of VGG16");
  command->add_option("--lpips-lin", config.lpips_lin, "Measure LPIPS: its linear layers, vgg.pth");
  command->add_flag("--json", options->is_json, "Print metrics.json instead of a table");
  command->footer(
      "Example:\n  vgen reconstruct runs/tokenizer data/digits.tar.gz --split val --out copies\n"
      "  vgen reconstruct vq_ds16_c2i.pt photos/ --image-size 384 --eval-size 256 --out copies\n");
  command->callback([options] {
    const eval::ReconstructResult result = eval::reconstruct(options->config);
    const std::string text = options->is_json ? io::dump_json(eval::result_json(result), 1) + "\n"
                                              : eval::format_result(result);
    std::fputs(text.c_str(), stdout);
  });
}

}  // namespace vgen::apps
