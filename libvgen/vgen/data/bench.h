#pragma once
// `vgen data bench`: how fast a dataset becomes training batches on this machine.

#include <cstdint>
#include <string>

#include "vgen/data/loader.h"

namespace vgen::data {

struct LoaderBenchConfig {
  DataConfig data = {};  ///< of `train`
  int64_t batch_size = 32;
  double seconds = 5;  ///< measured time; whole batches
  uint64_t seed = 0;
};

struct LoaderBenchReport {
  std::string path;
  int64_t images = 0;  ///< handed out in the measured time
  double seconds = 0;
  double images_per_second = 0;
  double cpu_ms_per_image = 0;  ///< of all threads: what is left when other programs take turns
  int64_t workers = 0;
  int64_t batch_size = 0;
  int64_t broken = 0;  ///< skipped
};

/// Fills the prefetch queue first, then takes batches as fast as they come. Throws like Loader.
LoaderBenchReport bench_loader(const LoaderBenchConfig& config);

std::string format_report(const LoaderBenchReport& report);  ///< one line
std::string report_json(const LoaderBenchReport& report);    ///< the fields of LoaderBenchReport

}  // namespace vgen::data
