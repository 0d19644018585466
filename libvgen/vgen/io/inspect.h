#pragma once
// What is in a file of tensors: `vgen inspect`.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "vgen/io/dtype.h"

namespace vgen::io {

struct InspectConfig {
  std::string path;
  std::string filter = {};   ///< only names that match: a glob, or a part of the name
  bool must_verify = false;  ///< also read all data and check the checksums
};

struct TensorInfo {
  std::string name;
  std::string group;  ///< the dict or file it is in, "" = the file's only one
  Dtype dtype = Dtype::kFloat32;
  std::vector<int64_t> shape;
  uint64_t num_elements = 0;
  uint64_t size_bytes = 0;
};

struct InspectReport {
  std::string path;
  std::string format;       ///< "safetensors", "PyTorch zip", ...
  uint64_t file_bytes = 0;  ///< of all files together
  std::vector<TensorInfo> tensors;
  std::vector<std::pair<std::string, std::string>> metadata;  ///< all that is no tensor, as text
};

/// Reads .safetensors, .pt/.pth/.bin, .npy, .npz, the index of a sharded checkpoint, or a folder
/// with such files (a checkpoint of a run). In a folder the tensors that lie in shards
/// (io/shards.h) are listed whole, under "model.safetensors"; of one shard alone its rows are, and
/// as metadata where they belong. Only headers are read, unless verification is asked for. Throws
/// like the readers.
InspectReport inspect(const InspectConfig& config);

/// A table, the totals per group, the metadata.
std::string format_report(const InspectReport& report);

/// One JSON object: path, format, file_bytes, num_tensors, num_parameters, size_bytes, tensors
/// [{name, group, dtype, shape, num_elements, size_bytes}], metadata {name: text}.
std::string report_json(const InspectReport& report);

}  // namespace vgen::io
