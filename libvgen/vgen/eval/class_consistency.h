#pragma once
// Do generated images show the class asked for? Judged by the nearest real image: no network, no
// weights, for small pictures such as digits. `vgen evaluate consistency`.

#include <cstdint>
#include <string>
#include <vector>

#include "vgen/data/dataset.h"
#include "vgen/io/json.h"

namespace vgen::eval {

struct ConsistencyConfig {
  std::string samples;        ///< --out folder of `vgen sample`
  data::DatasetConfig train;  ///< labelled images that the classifier looks up
  data::DatasetConfig val;    ///< labelled images that measure the classifier itself
  int64_t threads = 0;        ///< of LibTorch; 0 = one per core
};

struct ClassTally {
  int64_t samples = 0, consistent = 0;
};

struct ConsistencyResult {
  int64_t samples = 0, consistent = 0;  ///< generated images; those recognised as their class
  int64_t val_images = 0, val_correct = 0;
  int64_t copies = 0;               ///< samples equal to a training image, pixel for pixel
  std::vector<ClassTally> classes;  ///< by label
  std::vector<std::string> names;   ///< of the classes
};

/// 1-nearest-neighbour on pixels: the label of the training image with the least squared distance
/// (ties: the first), over 8-bit RGB at the samples' size (LlamaGen's centre crop). Throws Error:
/// kNotFound (no samples.json), kDataCorrupt, kInvalidArgument (no labels, a class id beyond those
/// of the training images, samples of different sizes, more than
/// 8 GiB of pixels).
ConsistencyResult class_consistency(const ConsistencyConfig& config);

io::Json result_json(const ConsistencyResult& result);
/// Lines for people.
std::string format_result(const ConsistencyResult& result);

}  // namespace vgen::eval
