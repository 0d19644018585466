#pragma once
// What a file is, told by its first bytes.

#include <cstddef>
#include <span>

namespace vgen::io::detail {

enum class FileKind {
  kSafetensors,
  kShardIndex,  ///< JSON text
  kTorchZip,
  kTorchLegacy,
  kNpy,
  kNpz,
};

/// Throws Error(kDataCorrupt) for anything else, and says what it is when that is known: empty, a
/// web page, a git-lfs pointer, a gzip, a tar.
FileKind sniff(std::span<const std::byte> file);

}  // namespace vgen::io::detail
