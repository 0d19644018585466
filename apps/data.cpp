#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "dataset_options.h"
#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/data/bench.h"
#include "vgen/data/stats.h"
#include "vgen/data/synth.h"
#include "vgen/data/verify.h"
#include "vgen/io/json.h"

namespace vgen::apps {
namespace {

void print(const std::string& text) { std::fputs(text.c_str(), stdout); }

/// The options that name a dataset.
void add_dataset(CLI::App* command, data::DatasetConfig& config) {
  command->add_option("path", config.path, "Folder, .tar or .tar.gz")->required();
  add_dataset_options(*command, config);
}

void add_workers(CLI::App* command, int64_t& workers) {
  command->add_option("--workers", workers, "Threads")->capture_default_str();
}

void add_index(CLI::App* data) {
  struct Options {
    data::DatasetConfig dataset;
    bool is_json = false;
  };
  auto options = std::make_shared<Options>();
  auto* command = data->add_subcommand("index", "Build the cached index anew and print its counts");
  add_dataset(command, options->dataset);
  command->add_flag("--json", options->is_json, "Machine-readable");
  command->footer("Example:\n  vgen data index /data/ILSVRC2012_img_train.tar\n");
  command->callback([options] {
    const data::IndexReport report = data::refresh_index(options->dataset);
    print(options->is_json ? report_json(report, options->dataset.path)
                           : format_report(report, options->dataset.path));
  });
}

void add_verify(CLI::App* data) {
  struct Options {
    data::VerifyConfig config;
    bool is_json = false;
  };
  auto options = std::make_shared<Options>();
  auto* command = data->add_subcommand(
      "verify", "Decode every image and list the broken ones; exit code 1 when there are some");
  add_dataset(command, options->config.dataset);
  command->add_option("--min-side", options->config.min_side, "Smaller images count as broken")
      ->capture_default_str();
  command->add_option("--max-pixels", options->config.max_pixels, "Larger images count as broken")
      ->capture_default_str();
  add_workers(command, options->config.workers);
  command->add_flag("--json", options->is_json, "Machine-readable");
  command->footer("Example:\n  vgen data verify /data/imagenet --split train --workers 16\n");
  command->callback([options] {
    const data::VerifyReport report = data::verify(options->config);
    print(options->is_json ? report_json(report) : format_report(report));
    require(report.broken.empty(), ErrorCode::kDataCorrupt, report.path, ": ", report.broken.size(),
            " of ", report.images,
            " images are broken; replace or remove them (training skips them)");
  });
}

void add_stats(CLI::App* data) {
  struct Options {
    data::StatsConfig config;
    bool is_json = false;
  };
  auto options = std::make_shared<Options>();
  auto* command =
      data->add_subcommand("stats", "Count classes, sizes and formats; mean and std of the pixels");
  add_dataset(command, options->config.dataset);
  command->add_flag("--headers-only", options->config.headers_only,
                    "Do not decode: no mean and std");
  add_workers(command, options->config.workers);
  command->add_flag("--json", options->is_json, "Machine-readable");
  command->footer("Example:\n  vgen data stats data/digits.tar.gz --split train\n");
  command->callback([options] {
    const data::StatsReport report = data::collect_stats(options->config);
    print(options->is_json ? report_json(report) : format_report(report));
  });
}

void add_synth(CLI::App* data) {
  auto config = std::make_shared<data::SynthConfig>();
  auto* command = data->add_subcommand(
      "synth", "Make a dataset of procedural pictures with class labels and captions");
  command->add_option("out", config->out, "Folder or .tar to make")->required();
  command
      ->add_option("--layout", config->layout,
                   "folder: class folders; tar: a tar of them; shards: tars of jpg, json, txt")
      ->capture_default_str();
  command->add_option("--count", config->count, "Images")->capture_default_str();
  command->add_option("--classes", config->classes, "1 to 1000")->capture_default_str();
  command->add_option("--size", config->size, "Pixels a side")->capture_default_str();
  command
      ->add_option("--max-size", config->max_size,
                   "Draw width and height between --size and this; 0: all alike")
      ->capture_default_str();
  command->add_option("--format", config->format, "jpeg or png")->capture_default_str();
  command->add_option("--quality", config->quality, "Of a JPEG, 1 to 100")->capture_default_str();
  command->add_option("--shard-size", config->shard_size, "Images in a shard")
      ->capture_default_str();
  command->add_option("--seed", config->seed, "Same seed, same pictures")->capture_default_str();
  add_workers(command, config->workers);
  command->footer("Example:\n  vgen data synth shapes --count 10000 --classes 100 --size 64\n");
  command->callback([config] {
    const data::SynthReport report = data::write_synth(*config);
    print(str_cat(config->out, ": ", format_count(static_cast<uint64_t>(report.images)),
                  " images, ", config->classes, " classes, ", format_bytes(report.size_bytes),
                  " in ", format_count(static_cast<uint64_t>(report.files)), " files\n"));
  });
}

void add_bench(CLI::App* data) {
  struct Options {
    data::LoaderBenchConfig config;
    bool is_json = false;
  };
  auto options = std::make_shared<Options>();
  auto* command = data->add_subcommand("bench", "Measure how fast training batches are made");
  data::DataConfig& config = options->config.data;
  add_dataset(command, config.train);
  command->add_option("--batch-size", options->config.batch_size, "Images a batch")
      ->capture_default_str();
  command->add_option("--image-size", config.image_size, "Side of the crop")->capture_default_str();
  command->add_option("--transform", config.transform, "random_crop, center_crop, var")
      ->capture_default_str();
  command->add_flag("--decode-scale", config.decode_scale, "Let JPEGs be shrunk while decoding");
  command->add_option("--seconds", options->config.seconds, "Measured time")->capture_default_str();
  add_workers(command, config.workers);
  command->add_flag("--json", options->is_json, "Machine-readable");
  command->footer("Example:\n  vgen data bench /data/imagenet --split train --workers 8\n");
  command->callback([options] {
    const data::LoaderBenchReport report = data::bench_loader(options->config);
    print(options->is_json ? report_json(report) : format_report(report));
  });
}

}  // namespace

void add_data(CLI::App& app) {
  auto* command = app.add_subcommand("data", "Index, check, describe, make and time datasets");
  command->require_subcommand(1);
  command->footer("Example:\n  vgen data stats data/digits.tar.gz --split train\n");
  add_index(command);
  add_verify(command);
  add_stats(command);
  add_synth(command);
  add_bench(command);
}

}  // namespace vgen::apps
