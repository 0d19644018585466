#pragma once
// A tar, written through an AtomicFile. The same members give the same bytes: owner and times are
// zero.

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace vgen::data::detail {

class TarWriter {
 public:
  /// Throws like io::AtomicFile.
  explicit TarWriter(const std::string& path);
  ~TarWriter();
  TarWriter(const TarWriter&) = delete;
  TarWriter& operator=(const TarWriter&) = delete;

  /// One regular file.
  void add(const std::string& name, std::span<const std::byte> bytes);
  void add(const std::string& name, std::string_view text) {
    add(name, std::as_bytes(std::span(text.data(), text.size())));
  }

  /// Writes the end mark and makes the file appear. Returns its size in bytes.
  uint64_t commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace vgen::data::detail
