#pragma once
// index.json of a checkpoint.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
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
  std::string checksum = {};  ///< CRC-32C of all of the above, as parse_index() finds it
};

/// The text of an index.json, with its checksum. Metrics that are not finite are left out. Throws
/// as parse_index() where that would refuse what is listed.
std::string dump_index(const Index& index);

/// The inverse. Throws Error(kDataCorrupt): "index.json names '../x', ...". Another checksum than
/// that of the text, files that are not listed, sets of shards that are not whole, and tensors with
/// gaps or overlaps are errors. An index without a checksum is read: earlier runs wrote none.
Index parse_index(std::string_view text);

/// Of a checkpoint's folder. Throws as parse_index(), without the folder's name.
Index read_index(const std::string& folder);

/// Atomically.
void write_index(const std::string& folder, const Index& index);

/// The entry of a file in `files`. Reads all of it.
io::Json describe_file(const std::string& path);

/// Whether a file is as its entry says: the size, and with_checksum the bytes. Throws
/// Error(kDataCorrupt): "model.safetensors has 100 bytes, expected 2120".
void check_file(const std::string& folder, const std::string& name, const io::Json& entry,
                bool with_checksum);

/// Throws Error(kDataCorrupt) for files of weights in the folder that the index does not list:
/// readers would take them, and nothing says that they are whole.
void check_unlisted(const std::string& folder, const Index& index);

}  // namespace vgen::checkpoint::detail
