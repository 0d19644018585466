#pragma once
// `vgen data stats`: what a dataset consists of.

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "vgen/data/dataset.h"

namespace vgen::data {

struct StatsConfig {
  DatasetConfig dataset;
  bool headers_only = false;  ///< no decoding: no mean and deviation, damage in pixels goes unseen
  int64_t workers = 2;        ///< reading and decoding threads
};

struct SizeRange {
  int64_t smallest = 0;
  int64_t median = 0;
  int64_t largest = 0;
};

struct StatsReport {
  std::string path;
  int64_t images = 0;  ///< broken ones too; all that follows is about the others
  int64_t broken = 0;
  uint64_t size_bytes = 0;
  std::vector<std::pair<std::string, int64_t>> classes = {};  ///< name, images (broken ones too)
  std::map<std::string, int64_t> formats = {};                ///< "jpeg" -> images
  SizeRange width = {}, height = {};                          ///< pixels
  std::vector<std::pair<std::string, int64_t>> short_sides =
      {};                             ///< histogram: "256..383" -> images
  bool has_pixels = false;            ///< mean and deviation are there
  std::array<double, 3> mean{};       ///< of R, G, B over all pixels, in [0, 1]
  std::array<double, 3> deviation{};  ///< standard deviation of the same
};

/// Shows its progress. Sums are integers, so the report does not depend on the workers. Throws like
/// Dataset::open; a broken image is counted and logged.
StatsReport collect_stats(const StatsConfig& config);

/// Tables. Of more than 20 classes only the extremes are listed.
std::string format_report(const StatsReport& report);

/// One JSON object with the fields of StatsReport.
std::string report_json(const StatsReport& report);

}  // namespace vgen::data
