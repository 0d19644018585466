#pragma once
// Read-only view of a whole file through the page cache.

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace vgen::io {

/// A memory-mapped file, unmapped by its destructor. Immutable, so any thread may read it. If
/// another program truncates the file meanwhile, reading the lost part is a fatal signal: replace
/// files by rename (AtomicFile), never in place.
class MappedFile {
 public:
  /// Throws Error(kNotFound) if there is no such file, (kInvalidArgument) if it is a folder or a
  /// device, (kUnavailable) if it cannot be read.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::string path_;
  std::span<const std::byte> bytes_;
};

/// Bytes of a file and whatever keeps them alive. `name` is what errors call them.
struct FileBytes {
  std::string name;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

FileBytes map_file(const std::string& path);

/// Gives the memory of the pages that lie wholly within `bytes` back to the system; who reads them
/// again has them read from the file again. `bytes` must be part of a mapped file's.
void forget_pages(std::span<const std::byte> bytes);

/// A whole small text file (at most `max_size` bytes, else Error(kDataCorrupt)).
std::string read_text_file(const std::string& path, size_t max_size = 16u << 20);

}  // namespace vgen::io
