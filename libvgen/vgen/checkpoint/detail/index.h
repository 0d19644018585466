#pragma once
// index.json of a checkpoint.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "vgen/io/json.h"
#include "vgen/io/shards.h"

namespace vgen::checkpoint::detail {

struct Index {
  int64_t step = 0;
  std::map<std::string, double> metrics;
  io::Json files = io::Json::object();  ///< {"state.json": {"size_bytes": 12, "crc32c": "..."}}
  /// Of each file that is in shards, "model.safetensors": where its tensors lie.
  std::map<std::string, std::vector<io::SlicedTensor>> tensors;
};

/// Throws Error(kDataCorrupt) without the folder's name: "index.json names '../x', ...". Shards
/// that are not among the files, and tensors with gaps or overlaps, are errors.
Index read_index(const std::string& folder);

/// Atomically. Metrics that are not finite are left out.
void write_index(const std::string& folder, const Index& index);

/// The entry of a file in `files`. Reads all of it.
io::Json describe_file(const std::string& path);

/// Whether a file is as its entry says: the size, and with_checksum the bytes. Throws
/// Error(kDataCorrupt): "model.safetensors has 100 bytes, expected 2120".
void check_file(const std::string& folder, const std::string& name, const io::Json& entry,
                bool with_checksum);

}  // namespace vgen::checkpoint::detail
