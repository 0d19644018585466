#pragma once
// From a list of files to labelled samples in their order.

#include <cstdint>
#include <string>
#include <vector>

#include "vgen/data/dataset.h"
#include "vgen/data/detail/file_list.h"

namespace vgen::data::detail {

struct Sample {
  ListedFile file;
  int64_t label = -1;
};

struct Samples {
  std::vector<Sample> samples;
  std::vector<std::string> classes;  ///< by label
};

/// Applies config.split, layout and labels to `list`. `is_tar`: one common top folder is looked
/// through. `where` names the dataset in messages. Throws Error(kNotFound) for a split that is not
/// there, Error(kInvalidArgument) for no images, a class without images, splits without a choice.
Samples organise(FileList list, const DatasetConfig& config, bool is_tar, const std::string& where);

}  // namespace vgen::data::detail
