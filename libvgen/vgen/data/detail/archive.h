#pragma once
// Compressed tars (.tar.gz, .tar.xz, .tar.zst, .tar.bz2): the tar inside as a ByteSource.

#include <cstdint>
#include <memory>
#include <string>

#include "vgen/data/detail/byte_source.h"

namespace vgen::data::detail {

/// Up to this size the tar inside is held in memory.
inline constexpr uint64_t kMaxTarInMemory = uint64_t{256} << 20;

/// True for .tar.gz .tgz .tar.xz .txz .tar.zst .tar.bz2 .tbz2, in any case.
bool is_compressed_tar(std::string_view path);

/// Decompresses `path`: into memory, or, when it is larger than `max_in_memory`, into `unpacked`,
/// a plain tar that is reused when it is there already; "" = an UnnamedFile, of which nothing is
/// left. Throws Error(kDataCorrupt) for damaged or
/// truncated data, Error(kUnavailable) for a full disk.
std::unique_ptr<ByteSource> open_compressed(const std::string& path, const std::string& unpacked,
                                            uint64_t max_in_memory = kMaxTarInMemory);

}  // namespace vgen::data::detail
