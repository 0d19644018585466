#include "vgen/extract/extract.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "dataset_options.h"
#include "device_option.h"
#include "vgen/core/log.h"
#include "vgen/io/json.h"

namespace vgen::apps {

namespace {

struct Options {
  extract::ExtractConfig config;
  bool is_json = false;
};

void add_model_options(CLI::App& command, extract::ExtractConfig& config) {
  infer::TokenizerOptions& tokenizer = config.tokenizer_options;
  command
      .add_option("--weights", tokenizer.weights,
                  "auto (EMA if there are any), ema, model, or the name of a dict in a .pt file")
      ->capture_default_str();
  command.add_option(
      "--config", tokenizer.config,
      "YAML of the model, or VQ-16, VQ-8; default: of the run, or read off the weights");
  add_device_options(command, tokenizer.device);
  command.add_option("--precision", tokenizer.precision, "What the encoder computes in")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command.add_option("--threads", config.threads, "Of the model, 0 = one per core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--batch-size", config.batch_size, "Crops at once")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

void add_data_options(CLI::App& command, extract::ExtractConfig& config) {
  add_dataset_options(command, config.input);
  command
      .add_option("--image-size", config.image_size,
                  "Side of a crop, 0 = of the run's config, else 256")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option(
          "--crops", config.crops,
          "Crop sets, by comma: center, center_flip, ten_crop:RANGE (published: 1.1, 1.05), "
          "five_crop:RANGE")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  command.add_option("--limit", config.limit, "Take the first images only, 0 = all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--min-side", config.min_side, "Smaller images count as broken")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--on-broken", config.on_broken, "Broken images: skip (and count) or fail")
      ->check(CLI::IsMember({"skip", "fail"}))
      ->capture_default_str();
  command.add_option("--workers", config.workers, "Threads that decode images")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
}

io::Json to_json(const extract::ExtractResult& result) {
  using io::Json;
  Json json = Json::object();
  json.set("images", Json::number(result.images));
  json.set("broken", Json::number(result.broken));
  json.set("new_shards", Json::number(result.new_shards));
  json.set("kept_shards", Json::number(result.kept_shards));
  json.set("complete", Json::boolean(result.is_complete));
  json.set("seconds", Json::number(result.seconds));
  json.set("crops_per_second", Json::number(result.crops_per_second));
  json.set("tokenizer", Json::string(result.tokenizer));
  if (result.verify) {
    Json& verify = json.set("verify", Json::object());
    verify.set("crops", Json::number(result.verify->crops));
    verify.set("codes", Json::number(result.verify->codes));
    verify.set("equal_codes", Json::number(result.verify->equal_codes));
    verify.set("psnr", Json::number(result.verify->psnr));
    verify.set("psnr_again", Json::number(result.verify->psnr_again));
    verify.set("psnr_shuffled", Json::number(result.verify->psnr_shuffled));
  }
  return json;
}

void print_result(const std::string& out, const extract::ExtractResult& result) {
  std::printf("%s: %s images in %s shards (%s new), %s left out, tokenizer %s%s\n", out.c_str(),
              format_count(static_cast<uint64_t>(result.images)).c_str(),
              format_count(static_cast<uint64_t>(result.new_shards + result.kept_shards)).c_str(),
              format_count(static_cast<uint64_t>(result.new_shards)).c_str(),
              format_count(static_cast<uint64_t>(result.broken)).c_str(), result.tokenizer.c_str(),
              result.is_complete ? "" : "; other ranks are not done");
  if (!result.verify) return;
  const extract::VerifyResult& verify = *result.verify;
  const double share = static_cast<double>(verify.equal_codes) / static_cast<double>(verify.codes);
  std::printf(
      "verified %lld crops: %s %% of %s codes as encoded again, PSNR %s dB (encoded again %s dB, "
      "shuffled codes %s dB)\n",
      static_cast<long long>(verify.crops), format_fixed(100 * share, 2).c_str(),
      format_count(static_cast<uint64_t>(verify.codes)).c_str(),
      format_fixed(verify.psnr, 2).c_str(), format_fixed(verify.psnr_again, 2).c_str(),
      format_fixed(verify.psnr_shuffled, 2).c_str());
}

}  // namespace

void add_extract(CLI::App& app) {
  auto options = std::make_shared<Options>();
  extract::ExtractConfig& config = options->config;
  auto* command =
      app.add_subcommand("extract", "Turn images into codes, once, for training on them");
  command
      ->add_option("tokenizer", config.tokenizer,
                   "Run folder, checkpoint folder, or a tokenizer's .pt or .safetensors")
      ->required();
  command->add_option("input", config.input.path, "Folder, .tar or .tar.gz of images")->required();
  command->add_option("--out", config.out, "Folder of the codes; an interrupted run goes on there")
      ->required();
  add_data_options(*command, config);
  add_model_options(*command, config);
  command
      ->add_option("--shard-size", config.shard_size, "Images per file; what a kill costs at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--official-layout", config.official_layout,
                      "Also write one .npy per image into this folder, for LlamaGen's Python code");
  command
      ->add_option("--verify", config.verify,
                   "Afterwards decode this many crops and compare them with the images; without a "
                   "number 64")
      ->check(CLI::NonNegativeNumber)
      ->expected(0, 1)
      ->default_str("64");
  command->add_flag("--json", options->is_json, "Print the result as JSON");
  command->footer(
      "Example:\n"
      "  vgen extract runs/tokenizer data/digits.tar.gz --split train --out codes/train --verify\n"
      "  vgen extract vq_ds16_c2i.pt imagenet/train --crops ten_crop:1.1,ten_crop:1.05 \\\n"
      "    --precision bf16 --out codes/imagenet256\n"
      "Several processes, started by torchrun, srun or mpirun, share the work.\n");
  command->callback([options] {
    const extract::ExtractConfig& config = options->config;
    const dist::Launch launch = dist::launch_from_environment();
    LogConfig log;
    log.rank = launch.rank;
    log.world_size = launch.world_size;
    init_logging(log);
    const extract::ExtractResult result = extract::extract(config, launch);
    if (options->is_json) {
      std::printf("%s\n", io::dump_json(to_json(result), 1).c_str());
    } else {
      print_result(config.out, result);
    }
  });
}

}  // namespace vgen::apps
