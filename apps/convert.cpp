#include "vgen/io/convert.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "vgen/checkpoint/store.h"
#include "vgen/core/strings.h"

namespace vgen::apps {

void add_convert(CLI::App& app) {
  auto config = std::make_shared<io::ConvertConfig>();
  auto* command = app.add_subcommand("convert", "Copy weights to another file format");
  command
      ->add_option(
          "input", config->input,
          "Anything that `vgen inspect` lists; of a checkpoint in shards the whole tensors")
      ->required();
  command->add_option("output", config->output, ".safetensors, .pt, .pth, .bin or .npz")
      ->required();
  command
      ->add_option("--key", config->key,
                   "Which dict of the input: auto, all, or a path such as ema or trainer.vae_local")
      ->capture_default_str();
  command->add_option("--nest", config->nest, "PyTorch output: put the tensors under this key");
  command->add_flag("--force", config->must_overwrite, "Replace an existing output");
  command->footer("Example:\n  vgen convert vq_ds16_c2i.pt vq16.safetensors --key ema,auto\n");
  command->callback([config] {
    if (checkpoint::is_checkpoint_path(config->input)) {
      config->input = checkpoint::find_checkpoint(config->input).path;
    }
    const io::ConvertResult result = io::convert(*config);
    std::printf("%s: %s tensors, %s, from %s of %s\n", config->output.c_str(),
                format_count(result.num_tensors).c_str(), format_bytes(result.size_bytes).c_str(),
                result.key.empty() ? "the root" : result.key.c_str(), config->input.c_str());
  });
}

}  // namespace vgen::apps
