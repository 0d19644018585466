#pragma once
// Members of a tar: ustar, GNU long names and base-256 sizes, pax `path` and `size`.

#include <cstdint>
#include <optional>
#include <string>

#include "vgen/data/detail/byte_source.h"

namespace vgen::data::detail {

struct TarMember {
  std::string name;     ///< as stored: may hold anything, never use it as a path on disk
  uint64_t offset = 0;  ///< of its bytes in the source
  uint64_t size = 0;
  bool is_file = false;  ///< regular; links, devices and the like are neither
  bool is_folder = false;
};

/// Walks the headers of the tar in bytes [begin, end) of `source`, which must outlive the reader.
class TarReader {
 public:
  /// `where` names the tar in messages.
  TarReader(const ByteSource& source, uint64_t begin, uint64_t end, std::string where);

  /// The next member, none at the end mark. Throws Error(kDataCorrupt): "a.tar: entry 7 at byte
  /// 51200: checksum 8191, expected 8219"; a tar without end mark or with a short last member is
  /// truncated.
  std::optional<TarMember> next();

 private:
  struct Header;
  std::string read_text(uint64_t offset, uint64_t size) const;
  void read_pax(uint64_t offset, uint64_t size);

  const ByteSource& source_;
  uint64_t begin_, at_, end_;
  std::string where_;
  int64_t entry_ = 0;
  // What a preceding pax or GNU header says about the next member.
  std::optional<std::string> next_name_;
  std::optional<uint64_t> next_size_;
};

}  // namespace vgen::data::detail
