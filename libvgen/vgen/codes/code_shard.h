#pragma once
// The files of a code dataset:
//
//   index.json                   what all codes have in common, classes, and every shard with its
//                                images, size and CRC-32C; written last
//   shard-00000.safetensors ...  shard s has what was readable of the images [s * S, (s + 1) * S)
//
// Tensors of a shard, N images, A crops, T tokens:
//
//   codes          uint16 or int32 (N, A, T)
//   checksums      uint32 (N, A): CRC-32C of the bytes of each crop's codes
//   labels         int32 (N), -1 = none
//   images         int64 (N): index in the dataset of images, ascending
//   names          uint8: the names of the images, one after the other, UTF-8 or whatever they are
//   name_offsets   uint32 (N + 1): where each name begins, and the end
//
// and in `__metadata__`: format, shard, settings (JSON, equal in all shards), tables_crc32c (of all
// tensors but `codes`). More tensors with N rows may be added (captions): readers leave alone what
// they do not know. A shard is written in one step and its bytes depend on the images and the
// settings alone, so any number of processes can write disjoint shards, and what a killed one
// finished is kept.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vgen/codes/code_info.h"
#include "vgen/io/safetensors.h"

namespace vgen::codes {

/// "shard-00012.safetensors"
std::string shard_name(int64_t shard);
inline constexpr const char* kIndexName = "index.json";

/// A shard in the making.
class ShardBuilder {
 public:
  explicit ShardBuilder(const CodeInfo& info);

  /// The next image. `code_AT`: codes of all its crops, each in [0, codebook_size), else
  /// Error(kInternal). `image` ascends.
  void add(int64_t image, int64_t label, std::string_view name, std::span<const int64_t> code_AT);
  int64_t size() const { return static_cast<int64_t>(labels_.size()); }

  /// Writes atomically. `settings`: see above. Throws Error(kUnavailable): disk full.
  void write(const std::string& folder, int64_t shard, const io::Json& settings) const;

 private:
  template <class Code>
  void append(std::span<const int64_t> code_AT);

  CodeInfo info_;
  std::vector<std::byte> codes_;
  std::vector<uint32_t> checksums_;
  std::vector<int32_t> labels_;
  std::vector<int64_t> images_;
  std::vector<uint8_t> names_;
  std::vector<uint32_t> name_offsets_ = {0};
};

/// A shard, mapped. Cheap to copy; may be read from several threads.
struct Shard {
  std::string path;
  int64_t number = 0;
  io::Json settings;
  io::Array codes;  ///< (N, A, T)
  io::Array checksums, labels, images, names, name_offsets;

  int64_t size() const { return labels.shape[0]; }
  int64_t num_crops() const { return codes.shape[1]; }
  int64_t num_tokens() const { return codes.shape[2]; }
  int64_t label(int64_t row) const { return labels.as<int32_t>()[static_cast<size_t>(row)]; }
  int64_t image(int64_t row) const { return images.as<int64_t>()[static_cast<size_t>(row)]; }
  std::string name(int64_t row) const;
  /// The codes of one crop, their checksum verified. Throws Error(kDataCorrupt) for another
  /// checksum and for a code that is not below `codebook_size`.
  void read(int64_t row, int64_t crop, int64_t codebook_size, std::span<int64_t> code_T) const;
};

/// Maps a shard and checks all of it but the codes. Throws Error(kNotFound, kDataCorrupt,
/// kUnavailable), with the path.
Shard open_shard(const std::string& path);

/// What the index says of a shard.
struct ShardEntry {
  std::string file;
  int64_t images = 0;
  int64_t size_bytes = 0;
  std::string crc32c;  ///< of the whole file
};

struct CodeIndex {
  CodeInfo info;
  io::Json settings;  ///< what every shard's own must equal
  int64_t num_images = 0;
  std::vector<ShardEntry> shards = {};
};

/// Settings begin with info_to_json. Throws Error(kNotFound, kDataCorrupt), with the path.
CodeIndex read_index(const std::string& folder);
/// Atomically. Two processes that write the same index do no harm.
void write_index(const std::string& folder, const CodeIndex& index);

/// Reads every byte of a shard: checksums of all crops and tables. Throws like open_shard, and
/// Error(kInvalidArgument) for a shard with other settings: which.
ShardEntry check_shard(const std::string& path, const CodeInfo& info, const io::Json& settings);

/// "crops is ["center"], expected ["ten_crop:1.1"]" for the first difference between two objects;
/// none when they are equal.
std::optional<std::string> first_difference(const io::Json& found, const io::Json& expected);

}  // namespace vgen::codes
