#include "vgen/eval/sample.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"

namespace vgen::apps {

namespace {

struct Options {
  eval::SampleImagesConfig images;
  eval::SampleFidConfig fid;
  int64_t num_fid_images = 0;
};

void add_model_options(CLI::App& command, eval::SampleConfig& model) {
  command
      .add_option("checkpoint", model.checkpoint,
                  "Run folder, checkpoint folder, or a GPT's .pt or .safetensors")
      ->required();
  command.add_option("--tokenizer", model.tokenizer, "The same of the tokenizer")->required();
  command
      .add_option("--weights", model.gpt.weights,
                  "auto (EMA of a run; of a .pt file what official samplers take), ema, model, or "
                  "the name of a dict in a .pt file")
      ->capture_default_str();
  command.add_option("--config", model.gpt.config,
                     "YAML of the GPT, or B, L, XL, XXL, XXXL, 1B, 3B, 7B; default: of the run, or "
                     "read off the weights");
  command.add_option("--n-head", model.gpt.n_head,
                     "Attention heads, where neither config nor published size tells");
  command.add_option("--image-size", model.image_size, "Pixels; default: as trained, else 256");
  command
      .add_option("--tokenizer-weights", model.decoder.weights,
                  "auto (EMA if there are any), ema, model, or the name of a dict in a .pt file")
      ->capture_default_str();
  command.add_option("--tokenizer-config", model.decoder.config,
                     "YAML of the tokenizer, or VQ-16, VQ-8");
}

void add_run_options(CLI::App& command, eval::SampleConfig& model) {
  command.add_option("--precision", model.precision, "What the GPT's weights are stored in")
      ->check(CLI::IsMember({"fp32", "bf16", "int8"}))
      ->capture_default_str();
  command.add_option("--tokenizer-precision", model.decoder.precision, "Of the decoder")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command.add_option("--batch-size", model.batch_size, "Images at a time; changes no image")
      ->capture_default_str();
  command.add_option("--device", model.device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  command.add_option("--threads", model.threads, "Of the CPU, 0 = one per core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

void add_settings(CLI::App& command, infer::GenerateSettings& settings) {
  command.add_option("--seed", settings.seed, "Same seed and settings, same images")
      ->capture_default_str();
  command.add_option("--cfg-scale", settings.cfg_scale, "Guidance, up to 1 = off")
      ->capture_default_str();
  command
      .add_option("--cfg-interval", settings.cfg_interval,
                  "Last token index that guidance acts on, as the official code counts; -1 = all")
      ->capture_default_str();
  command.add_option("--temperature", settings.filter.temperature, "Below 1: nearer to the mode")
      ->capture_default_str();
  command.add_option("--top-k", settings.filter.top_k, "Only the k likeliest tokens, 0 = off")
      ->capture_default_str();
  command
      .add_option("--top-p", settings.filter.top_p,
                  "Only the likeliest tokens that make up this probability, 1 = off")
      ->capture_default_str();
}

void run(Options& options) {
  if (options.num_fid_images != 0) {
    options.fid.model = options.images.model;
    options.fid.num_images = options.num_fid_images;
    eval::sample_fid(options.fid);
    return;
  }
  const eval::SampleResult result = eval::sample_images(options.images);
  std::printf("%s: %s\n", options.images.out.c_str(), eval::format_result(result).c_str());
}

}  // namespace

void add_sample(CLI::App& app) {
  auto options = std::make_shared<Options>();
  eval::SampleImagesConfig& config = options->images;
  config.model.settings.cfg_scale = 4;
  config.model.settings.filter.top_k = 2000;
  config.out = "samples";
  auto* command = app.add_subcommand("sample", "Draw images from a trained GPT");
  add_model_options(*command, config.model);
  auto* classes =
      command->add_option("--class-id", config.classes, "Labels, ranges or names: 207,0-9,otter");
  command->add_option("--class-names", config.class_names,
                      "File with the name of each class, one per line");
  command->add_option("--count", config.count, "Images of each class")->capture_default_str();
  command->add_option("--out", config.out, "Folder for images, grid.png, codes.npy, samples.json")
      ->capture_default_str();
  command->add_flag("--force", config.must_overwrite, "Replace older results in --out");
  add_settings(*command, config.model.settings);
  add_run_options(*command, config.model);
  auto* fid = command->add_option("--fid", options->num_fid_images,
                                  "Draw so many images for FID, all classes in turn");
  auto* npz = command->add_option("--npz", options->fid.npz, "Where --fid writes them");
  command->add_option("--eval-size", options->fid.eval_size, "Pixels that --fid stores")
      ->capture_default_str();
  command->add_option("--rank", options->fid.rank, "Share of --fid of this process")
      ->envname("RANK");
  command->add_option("--world-size", options->fid.world_size, "Processes that share --fid")
      ->envname("WORLD_SIZE");
  fid->needs(npz)->excludes(classes);
  npz->needs(fid);
  command->footer(
      "Examples:\n"
      "  vgen sample c2i_B_256.pt --tokenizer vq_ds16_c2i.pt --class-id \"golden retriever,360\" "
      "\\\n"
      "    --count 4 --cfg-scale 4 --top-k 2000 --seed 7 --out samples\n"
      "  torchrun --no-python --nproc-per-node 8 vgen sample c2i_L_384.pt \\\n"
      "    --tokenizer vq_ds16_c2i.pt --fid 50000 --npz L384.npz --cfg-scale 2 --top-k 0 \\\n"
      "    --device cuda\n");
  command->callback([options, fid, classes] {
    if (fid->count() + classes->count() == 0) {
      throw CLI::RequiredError("--class-id, or --fid and --npz,");
    }
    run(*options);
  });
}

}  // namespace vgen::apps
