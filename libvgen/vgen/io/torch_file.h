#pragma once
// PyTorch's .pt/.pth files, read without running anything, and written.
//
// Reading understands the zip form (torch >= 1.6, pickle protocol 2, ZIP64, both byte orders) and
// the legacy stream before it. Pickle is a program; here it can only build plain data: unknown
// opcodes and globals are refused, and the first offending name is told. Bounds: nesting of 1000,
// about 2 million values, memory in proportion to the file.

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "vgen/io/array.h"
#include "vgen/io/mapped_file.h"
#include "vgen/io/torch_value.h"

namespace vgen::io {

/// An open file: its values, and its tensors on demand. One thread at a time.
class TorchFile {
 public:
  /// Maps and checks the file: zip directory, pickle, geometry of every tensor, size of every
  /// storage. Throws Error(kNotFound, kDataCorrupt, kUnavailable).
  explicit TorchFile(const std::string& path);
  explicit TorchFile(const FileBytes& file);
  ~TorchFile();
  TorchFile(TorchFile&&) noexcept;
  TorchFile& operator=(TorchFile&&) noexcept;

  const Value& root() const;

  /// The elements, row-major and little-endian. Contiguous tensors are mapped, others copied. The
  /// CRC-32 of a storage is checked when it is first read. Throws Error(kDataCorrupt) on a damaged
  /// storage, or for an expanded view (stride 0) that would take more than 64 MiB and more than the
  /// file.
  Array read(const TorchTensor& tensor) const;

  /// A value that holds no other (or a sequence of such), and its dotted path from the root.
  struct Leaf {
    std::string name;   ///< "optimizer.state.0.exp_avg"
    std::string group;  ///< the dict it is in, without numbered levels: "optimizer.state"
    const Value* value;
  };
  /// All below `value`, in file order. Throws Error(kDataCorrupt) when shared values make it far
  /// larger than the file.
  std::vector<Leaf> flatten(const Value& value) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct TorchItem;

/// A dict to write, in this order.
struct TorchDict {
  std::vector<std::pair<std::string, TorchItem>> entries;

  // Defined where TorchItem is complete.
  TorchDict();
  ~TorchDict();
  TorchDict(const TorchDict&);
  TorchDict(TorchDict&&) noexcept;
  TorchDict& operator=(const TorchDict&);
  TorchDict& operator=(TorchDict&&) noexcept;

  TorchDict& add(std::string key, TorchItem item);
};

/// A value to write. Tensors are borrowed views.
struct TorchItem {
  std::variant<std::monostate, bool, int64_t, double, std::string, ArrayView,
               std::vector<TorchItem>, TorchDict>
      value;
};

/// Writes a .pt file (zip form) that torch.load(weights_only=True) opens; atomic, streaming, ZIP64
/// where needed. Views of the same bytes (tied weights) share one storage. Throws
/// Error(kInvalidArgument) for duplicate keys, (kUnavailable) as AtomicFile does.
void write_torch_file(const std::string& path, const TorchDict& root);

}  // namespace vgen::io
