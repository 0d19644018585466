#include "sample_options.h"

#include <CLI/CLI.hpp>

#include "device_option.h"

namespace vgen::apps {

void add_sample_model(CLI::App& command, eval::SampleConfig& model) {
  command
      .add_option("checkpoint", model.checkpoint,
                  "Run folder, checkpoint folder, or a GPT's or VAR's .pt or .safetensors")
      ->required();
  command.add_option("--tokenizer", model.tokenizer, "The same of the tokenizer")->required();
  command
      .add_option("--weights", model.gpt.weights,
                  "auto (EMA of a run; of a .pt file what official samplers take), ema, model, or "
                  "the name of a dict in a .pt file")
      ->capture_default_str();
  command.add_option(
      "--config", model.gpt.config,
      "YAML of the model, or B, L, XL, XXL, XXXL, 1B, 3B, 7B, d16 to d36-s; default: of the "
      "run, or read off the weights");
  command.add_option("--n-head", model.gpt.n_head,
                     "Attention heads, where neither config nor published size tells");
  command.add_option("--image-size", model.image_size, "Pixels; default: as trained, else 256");
  command.add_flag("--any-size", model.any_size,
                   "GPT: draw on another grid than its files tell, with a warning");
  command
      .add_option("--tokenizer-weights", model.decoder.weights,
                  "auto (EMA if there are any), ema, model, or the name of a dict in a .pt file")
      ->capture_default_str();
  command.add_option("--tokenizer-config", model.decoder.config,
                     "YAML of the tokenizer, or VQ-16, VQ-8");
}

void add_sample_run(CLI::App& command, eval::SampleConfig& model) {
  command
      .add_option("--precision", model.precision, "What the transformer's weights are stored in")
      ->check(CLI::IsMember({"fp32", "bf16", "int8"}))
      ->capture_default_str();
  command.add_option("--tokenizer-precision", model.decoder.precision, "Of the decoder")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command
      .add_option("--batch-size", model.batch_size,
                  "Images at a time; on the CPU it changes no code")
      ->capture_default_str();
  add_device_options(command, model.device);
  command.add_option("--threads", model.threads, "Of the CPU, 0 = one per core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

void add_sample_settings(CLI::App& command, eval::SampleSettings& settings) {
  command.add_option("--seed", settings.seed, "Same seed and settings, same images")
      ->capture_default_str();
  command.add_option("--cfg-scale", settings.cfg_scale,
                     "Guidance; of a GPT up to 1 = off, default 4; of VAR 0 = off, default 4");
  command
      .add_option("--cfg-interval", settings.cfg_interval,
                  "Last token index that guidance acts on, as the official code counts; -1 = all")
      ->capture_default_str();
  command.add_option("--temperature", settings.temperature, "Below 1: nearer to the mode")
      ->capture_default_str();
  command.add_option("--top-k", settings.top_k,
                     "Only the k likeliest tokens, 0 = off; default 2000, of VAR 900");
  command.add_option("--top-p", settings.top_p,
                     "Only the likeliest tokens that make up this probability, 1 = off, the "
                     "default; of VAR 0.95");
  command.add_flag("--more-smooth", settings.more_smooth,
                   "VAR: go on from mixtures of codes; smoother, not for FID");
}

}  // namespace vgen::apps
