#pragma once
// Zips of stored members, with ZIP64 where sizes, offsets or counts need it.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "vgen/io/atomic_file.h"

namespace vgen::io::detail {

/// Streams into an AtomicFile. Local headers carry real sizes and checksums (the checksum is
/// patched in after the data), so every reader opens the result. The bytes depend on nothing but
/// the contents: times are 1980-01-01.
class ZipWriter {
 public:
  /// Data of each member begins at a multiple of `alignment` (a power of two up to 4096).
  ZipWriter(const std::string& path, size_t alignment);

  /// A member in pieces: begin, write until `size` bytes are there, end.
  void begin(const std::string& name, uint64_t size);
  void write(std::span<const std::byte> bytes);
  void end();

  void add(const std::string& name, std::span<const std::byte> bytes);

  /// Directory, fsync, rename. Call once, last.
  void finish();

 private:
  struct Member {
    std::string name;
    uint64_t size = 0;
    uint64_t offset = 0;
    uint32_t crc = 0;
  };
  void write_end_records(uint64_t directory_offset);

  AtomicFile file_;
  size_t alignment_;
  std::vector<Member> members_;
  uint64_t left_ = 0;  ///< bytes still to come of the open member
  bool is_open_ = false;
};

}  // namespace vgen::io::detail
