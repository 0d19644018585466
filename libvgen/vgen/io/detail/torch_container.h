#pragma once
// Where the pickle and the storages of a PyTorch file lie: a zip, or the legacy stream.

#include <cstddef>
#include <memory>
#include <span>

#include "vgen/io/detail/pickle_globals.h"

namespace vgen::io::detail {

class TorchContainer {
 public:
  virtual ~TorchContainer() = default;
  /// The bytes as they lie in the file; their size fits the storage. Throws Error(kDataCorrupt).
  virtual std::span<const std::byte> read_storage(const TorchStorage& storage) = 0;
  virtual bool is_big_endian() const { return false; }
  virtual bool has_checksums() const { return true; }
};

/// Tells the form by the content, unpickles into the arena and checks the size of every storage.
/// Files that are something else (a web page, a git-lfs pointer) are refused by what they are.
std::unique_ptr<TorchContainer> open_torch_container(std::span<const std::byte> file,
                                                     PickleArena& arena, const Value*& root);

}  // namespace vgen::io::detail
