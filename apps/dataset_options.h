#pragma once
// Options of every command that reads one dataset of images.

#include <CLI/CLI.hpp>

#include "vgen/data/dataset.h"

namespace vgen::apps {

/// What of config.path is taken, and how; the path itself is the command's own positional.
inline void add_dataset_options(CLI::App& command, data::DatasetConfig& config) {
  command.add_option("--split", config.split, "Folder inside it to take, e.g. train");
  command.add_option("--layout", config.layout, "classes, flat, or auto")->capture_default_str();
  command.add_option("--labels", config.labels,
                     "Of a flat dataset: text file, lines: file-name class-name");
  command
      .add_option("--index-cache", config.index_cache,
                  "Where indices are kept: auto, off, or a folder")
      ->capture_default_str();
}

}  // namespace vgen::apps
