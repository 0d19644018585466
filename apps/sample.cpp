#include "vgen/eval/sample.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>

#include "commands.h"
#include "sample_options.h"
#include "vgen/core/log.h"
#include "vgen/dist/launch.h"

namespace vgen::apps {

namespace {

struct Options {
  eval::SampleImagesConfig images;
  eval::SampleFidConfig fid;
  int64_t num_fid_images = 0;
  std::optional<int64_t> rank, world_size;  // none: as the launcher says
};

void run_fid(Options& options) {
  const dist::Launch launch = dist::launch_from_environment();
  eval::SampleFidConfig& config = options.fid;
  config.model = options.images.model;
  config.num_images = options.num_fid_images;
  config.rank = options.rank.value_or(launch.rank);
  config.world_size = options.world_size.value_or(launch.world_size);
  config.local_rank = launch.local_rank;
  init_logging(
      {.level = LogLevel::kInfo, .file = {}, .rank = config.rank, .world_size = config.world_size});
  eval::sample_fid(config);
}

void run(Options& options) {
  if (options.num_fid_images != 0) return run_fid(options);
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
  command->add_option("--rank", options->rank,
                      "Share of --fid of this process; default: as torchrun, srun, mpirun set it");
  command->add_option("--world-size", options->world_size,
                      "Processes that share --fid; default: the same");
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
