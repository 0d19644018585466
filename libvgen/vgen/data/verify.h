#pragma once
// `vgen data verify`: reads and decodes every image of a dataset, and lists the broken ones.

#include <cstdint>
#include <string>
#include <vector>

#include "vgen/data/dataset.h"
#include "vgen/data/image.h"

namespace vgen::data {

struct VerifyConfig {
  DatasetConfig dataset;
  int64_t min_side = 1;             ///< images with a shorter side below it are broken
  int64_t max_pixels = kMaxPixels;  ///< images with more pixels are broken
  int64_t workers = 2;              ///< decoding threads
};

struct BrokenImage {
  std::string path;    ///< with the root of the dataset
  std::string reason;  ///< "JPEG is truncated"
};

struct VerifyReport {
  std::string path;
  int64_t images = 0;  ///< broken ones too
  int64_t classes = 0;
  uint64_t size_bytes = 0;  ///< of all files
  double seconds = 0;
  std::vector<BrokenImage> broken = {};  ///< in the order of the dataset
};

/// The same rules as the loader: what is broken here is what a training run would skip. Shows its
/// progress. Throws like Dataset::open; a broken image is never an exception.
VerifyReport verify(const VerifyConfig& config);

/// "data/set: 10,000 images, 10 classes, 1.2 GiB, 2 broken" and one line for each broken image.
std::string format_report(const VerifyReport& report);

/// {"path", "images", "classes", "size_bytes", "seconds", "num_broken", "broken": [{"path",
/// "reason"}]}
std::string report_json(const VerifyReport& report);

}  // namespace vgen::data
