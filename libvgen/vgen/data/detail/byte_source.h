#pragma once
// Bytes that can be read anywhere: a file or a block of memory.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace vgen::data::detail {

/// Size and modification time: what tells that a file is still the same.
struct FileStamp {
  uint64_t size = 0;
  int64_t mtime_ns = 0;
  bool operator==(const FileStamp&) const = default;
};

/// Throws Error(kNotFound, kUnavailable).
FileStamp stamp_of(const std::string& path);

/// FNV-1a, 64 bit: tells apart and finds damage, no protection against malice.
uint64_t hash_bytes(std::string_view bytes);

/// May be read from several threads at once.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual uint64_t size() const = 0;
  /// Fills `out` from `offset` on. Throws Error(kDataCorrupt) past the end, Error(kUnavailable).
  virtual void read(uint64_t offset, std::span<std::byte> out) const = 0;
};

/// Throws Error(kNotFound, kUnavailable).
std::unique_ptr<ByteSource> open_file_source(const std::string& path);
std::unique_ptr<ByteSource> make_memory_source(std::vector<std::byte> bytes);

/// A file without a name, in $TMPDIR or else in /tmp, to be written once and then read: the system
/// frees its room when the last user of it closes it, or is killed.
class UnnamedFile {
 public:
  UnnamedFile();
  ~UnnamedFile();
  UnnamedFile(const UnnamedFile&) = delete;
  UnnamedFile& operator=(const UnnamedFile&) = delete;

  /// Appends. Throws Error(kUnavailable): a full disk.
  void write(std::span<const std::byte> bytes);
  /// All that was written. Call once, last.
  std::unique_ptr<ByteSource> take();

  const std::string& folder() const { return folder_; }

 private:
  std::string folder_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

/// A whole file, at most `max_size` bytes. Throws Error(kNotFound, kUnavailable, kDataCorrupt).
std::vector<std::byte> read_whole_file(const std::string& path, uint64_t max_size);

}  // namespace vgen::data::detail
