#include "vgen/io/inspect.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "vgen/checkpoint/store.h"

namespace vgen::apps {

void add_inspect(CLI::App& app) {
  struct Options {
    io::InspectConfig config;
    bool is_json = false;
  };
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("inspect", "List the tensors and metadata of a file");
  command
      ->add_option(
          "file", options->config.path,
          ".safetensors, .pt, .pth, .bin, .npy, .npz, *.index.json, a checkpoint folder or "
          "a run")
      ->required();
  command->add_option("--filter", options->config.filter,
                      "Only names that match: a glob, or a part of the name");
  command->add_flag("--verify", options->config.must_verify,
                    "Also read all data and check its checksums");
  command->add_flag("--json", options->is_json, "Machine-readable");
  command->footer("Example:\n  vgen inspect vq_ds16_c2i.pt --filter 'model.encoder.*'\n");
  command->callback([options] {
    std::string& path = options->config.path;
    if (checkpoint::is_checkpoint_path(path)) {
      path = checkpoint::newest_checkpoint(path);
      // Of all its files; none is passed over for an older one.
      if (options->config.must_verify) path = checkpoint::find_checkpoint(path).path;
    }
    const io::InspectReport report = io::inspect(options->config);
    const auto text = options->is_json ? io::report_json(report) : io::format_report(report);
    std::fputs(text.c_str(), stdout);
  });
}

}  // namespace vgen::apps
