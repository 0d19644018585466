#pragma once
// Zip directories: PyTorch's .pt and NumPy's .npz are zips. PKWARE APPNOTE 6.3.10.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace vgen::io::detail {

struct ZipEntry {
  std::string name;
  uint16_t method = 0;  ///< 0 stored, 8 deflated
  uint32_t crc = 0;
  uint64_t size = 0;                ///< once inflated
  std::span<const std::byte> data;  ///< as it lies in the file
};

/// The central directory, checked against the file: every member lies inside it, members do not
/// overlap each other nor the directory, names are unique and equal to those of the local headers.
/// Refused with Error(kDataCorrupt): no end record (cut files), encryption, several disks, methods
/// other than 0 and 8. Sizes are those of the directory, never of local headers (which writers may
/// leave at 0).
class ZipReader {
 public:
  /// Borrows the bytes. The messages do not name the file: the caller adds it.
  explicit ZipReader(std::span<const std::byte> file);

  const std::vector<ZipEntry>& entries() const { return entries_; }
  const ZipEntry* find(const std::string& name) const;

  /// Whether all CRC fields are 0: PyTorch's option to skip them. Nothing can be verified then.
  bool has_checksums() const { return has_checksums_; }

  /// The bytes of a stored member. Throws Error(kDataCorrupt) when the CRC-32 differs.
  std::span<const std::byte> read_stored(const ZipEntry& entry) const;

  /// Inflates or copies into `out`, which must have entry.size bytes; checks size and CRC-32.
  void read_into(const ZipEntry& entry, std::span<std::byte> out) const;

  /// The first bytes of a member, at most `size`, without a checksum: to look at its header.
  std::vector<std::byte> read_prefix(const ZipEntry& entry, size_t size) const;

 private:
  void check_crc(const ZipEntry& entry, std::span<const std::byte> bytes) const;

  std::vector<ZipEntry> entries_;
  std::unordered_map<std::string, size_t> index_;
  bool has_checksums_ = false;
};

}  // namespace vgen::io::detail
