#include "vgen/data/bench.h"

#include <time.h>

#include <chrono>

#include "vgen/core/error.h"
#include "vgen/io/json.h"

namespace vgen::data {
namespace {

/// Processor time of the whole process.
double cpu_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

}  // namespace

LoaderBenchReport bench_loader(const LoaderBenchConfig& config) {
  require(config.seconds > 0, ErrorCode::kInvalidArgument, "seconds is ", config.seconds,
          ": expected more than 0");
  Loader loader =
      Loader::for_training(config.data, {.batch_size = config.batch_size, .seed = config.seed});
  // What was prefetched before the clock starts is made up for after it stops.
  for (int64_t i = 0; i <= config.data.prefetch_batches; ++i) loader.next();
  const LoaderStats before = loader.stats();
  LoaderBenchReport report{.path = config.data.train.path,
                           .workers = config.data.workers,
                           .batch_size = config.batch_size};
  const double cpu_begin = cpu_seconds();
  const auto begin = std::chrono::steady_clock::now();
  while (report.seconds < config.seconds) {
    loader.next();
    report.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  const double cpu = cpu_seconds() - cpu_begin;
  report.images = loader.stats().images - before.images;
  report.broken = loader.stats().broken - before.broken;
  report.images_per_second = static_cast<double>(report.images) / report.seconds;
  report.cpu_ms_per_image = 1e3 * cpu / static_cast<double>(report.images);
  return report;
}

std::string format_report(const LoaderBenchReport& report) {
  return str_cat(report.path, ": ", format_fixed(report.images_per_second, 1), " images/s, ",
                 format_fixed(report.cpu_ms_per_image, 2), " ms of CPU each (", report.images,
                 " images in ", format_seconds(report.seconds), ", ", report.workers,
                 " workers, batch ", report.batch_size, ", ", report.broken, " broken)\n");
}

std::string report_json(const LoaderBenchReport& report) {
  io::Json json = io::Json::object();
  json.set("path", io::Json::string(report.path));
  json.set("images_per_second", io::Json::number(report.images_per_second));
  json.set("cpu_ms_per_image", io::Json::number(report.cpu_ms_per_image));
  json.set("images", io::Json::number(report.images));
  json.set("seconds", io::Json::number(report.seconds));
  json.set("workers", io::Json::number(report.workers));
  json.set("batch_size", io::Json::number(report.batch_size));
  json.set("broken", io::Json::number(report.broken));
  return io::dump_json(json) + "\n";
}

}  // namespace vgen::data
