#include "vgen/eval/sample.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "sample_options.h"

namespace vgen::apps {

namespace {

struct Options {
  eval::SampleImagesConfig images;
  eval::SampleFidConfig fid;
  int64_t num_fid_images = 0;
};

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
  config.out = "samples";
  auto* command = app.add_subcommand("sample", "Draw images from a trained GPT or VAR");
  add_sample_model(*command, config.model);
  auto* classes =
      command->add_option("--class-id", config.classes, "Labels, ranges or names: 207,0-9,otter");
  command->add_option("--class-names", config.class_names,
                      "File with the name of each class, one per line");
  command->add_option("--count", config.count, "Images of each class")->capture_default_str();
  command->add_option("--out", config.out, "Folder for images, grid.png, codes.npy, samples.json")
      ->capture_default_str();
  command->add_flag("--show-scales", config.show_scales,
                    "VAR: also write what each picture was after each scale");
  command->add_flag("--force", config.must_overwrite, "Replace older results in --out");
  add_sample_settings(*command, config.model.settings);
  add_sample_run(*command, config.model);
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
      "  vgen sample var_d16.pth --tokenizer vae_ch160v4096z32.pth --class-id 207 --count 8 \\\n"
      "    --cfg-scale 1.5 --show-scales --out dogs\n"
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
