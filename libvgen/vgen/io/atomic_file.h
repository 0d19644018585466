#pragma once
// Files that appear whole or not at all.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace vgen::io {

/// Writes "<folder>/.<name>.<random>.tmp" and, on commit(), makes it `path` in one step: flush,
/// fsync, rename, fsync of the folder. Until then an older file at `path` stays as it is. Without a
/// commit (an error, an exception) the destructor removes the temporary file. A kill -9 can leave
/// the temporary file behind, never half of `path`.
///
/// A full disk, a quota or a file-size limit is Error(kUnavailable) with the path and the free
/// space. A missing or unwritable folder is Error(kNotFound, kUnavailable). `path` must not be a
/// folder or device; a symbolic link is followed. One thread at a time.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Appends. Small pieces are buffered.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  void write_zeros(uint64_t count);

  /// Overwrites bytes that were written before, e.g. a checksum in a header.
  void patch(uint64_t offset, std::span<const std::byte> bytes);

  /// Bytes written so far: where the next write lands.
  uint64_t size() const { return size_; }

  /// Call once, last. Throws like write(); then `path` is untouched.
  void commit();

  const std::string& path() const { return path_; }

 private:
  void flush();
  void write_at(uint64_t offset, std::span<const std::byte> bytes);
  [[noreturn]] void fail(std::string_view what, int error_number) const;

  std::string path_;
  std::string target_;  ///< path_ with symbolic links resolved
  std::string folder_;
  std::string temp_path_;  ///< empty once renamed
  int fd_ = -1;
  uint64_t size_ = 0;
  std::vector<std::byte> buffer_;
};

/// A small file in one call.
void write_file_atomically(const std::string& path, std::string_view text);

}  // namespace vgen::io
