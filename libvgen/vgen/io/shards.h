#pragma once
// Tensors that are cut into rows of elements over several safetensors files, as the ranks of a run
// write them: `model.safetensors` is then model-00001-of-00004.safetensors and so on. A tensor in a
// shard has one axis; the metadata "vgen.parts" of the shard says whose elements it holds, as JSON:
// {"wqkv.weight": {"shape": [96, 32], "begin": 1536}}. A tensor that is not named there is whole.

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "vgen/io/array.h"
#include "vgen/io/json.h"
#include "vgen/io/safetensors.h"

namespace vgen::io {

inline constexpr std::string_view kPartsKey = "vgen.parts";

/// An index of a checkpoint with many shards is larger than other texts: 300 tensors of a model of
/// 7B parameters, as weights, averages and two moments, each cut over 1024 ranks, are 1.2 million
/// slices of about 60 bytes and 4 values, 75 MB and 5 million values.
inline constexpr size_t kMaxIndexBytes = size_t{256} << 20;
inline constexpr JsonLimits kIndexLimits{.bytes_per_node = 8};

/// Whose elements a row holds: those from `begin` on of a tensor of this shape, row-major.
struct Part {
  std::vector<int64_t> shape;
  int64_t begin = 0;
};

/// The metadata of a shard from the parts in it, and back. Throws Error(kDataCorrupt).
std::string dump_parts(const std::map<std::string, Part>& parts);
std::map<std::string, Part> parse_parts(const Metadata& metadata);

/// "model-00002-of-00004.safetensors" is number 2 of 4 of "model.safetensors".
std::string shard_name(const std::string& file, int64_t number, int64_t count);

struct ShardName {
  std::string file;  ///< "model.safetensors"
  int64_t number = 1;
  int64_t count = 1;
};
/// The inverse of shard_name; nothing for other names, nor for one of more than a million shards.
std::optional<ShardName> parse_shard_name(const std::string& name);

/// Elements of a tensor that lie in one file.
struct Slice {
  std::string file;  ///< a name in the folder
  int64_t begin = 0;
  int64_t length = 0;

  int64_t end() const { return begin + length; }
};

/// A tensor and where its elements lie.
struct SlicedTensor {
  std::string name;
  Dtype dtype = Dtype::kFloat32;
  std::vector<int64_t> shape;
  std::vector<Slice> slices;  ///< ascending
};

/// Sorts the slices and checks that they are the tensor, each element once. Throws
/// Error(kDataCorrupt): "tensor 'w': no file holds elements 12 to 19 of 64".
void check_slices(SlicedTensor& tensor);

/// A file of tensors, whole or in shards. What is read is mapped, and only what is read. One thread
/// at a time.
class SlicedFile {
 public:
  /// `path`: "step_0001000/model.safetensors". Where there is no such file, its shards beside it.
  /// Throws Error(kNotFound), also for a missing shard, and (kDataCorrupt).
  explicit SlicedFile(const std::string& path);
  /// What an index says of it: the files are opened when something of them is read.
  SlicedFile(const std::string& path, std::vector<SlicedTensor> tensors);

  const std::string& path() const { return path_; }
  /// In the order of the files.
  const std::vector<SlicedTensor>& tensors() const { return tensors_; }

  /// The elements of a slice: one axis. Throws Error(kDataCorrupt) where the file has others, by
  /// their number and dtype, or by what it says itself of the whole shape and the first element.
  Array row(const SlicedTensor& tensor, const Slice& slice);
  /// The whole tensor; copied where it lies in more than one file. All its rows are checked before
  /// memory is taken.
  Array whole(const SlicedTensor& tensor);

  /// Of the first file, but for what it says of parts.
  Metadata metadata();
  /// The files that were opened, mapped as long as somebody holds them.
  std::vector<FileBytes> opened() const;

 private:
  struct Shard {
    FileBytes bytes;
    Safetensors content;
    std::unordered_map<std::string_view, const Array*> arrays;
    std::map<std::string, Part> parts;

    Part part_of(const std::string& name, const Array& array) const;
  };
  Shard& shard(const std::string& file);
  void list_tensors(const std::vector<std::string>& files);

  std::string path_;
  std::string folder_;
  std::string first_file_;
  std::vector<SlicedTensor> tensors_;
  std::map<std::string, Shard> shards_;
};

/// Whether there is such a file, or shards of it.
bool has_tensor_file(const std::string& path);

/// The file itself, or its shards in their order, also those that are missing; empty when there is
/// neither. Throws Error(kDataCorrupt) for shards of several sets.
std::vector<std::string> find_shards(const std::string& path);

}  // namespace vgen::io
