#include "vgen/io/detail/zip_reader.h"

#include <zlib.h>

#include <algorithm>
#include <memory>

#include "vgen/core/error.h"
#include "vgen/io/detail/bytes.h"

namespace vgen::io::detail {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50;
constexpr uint32_t kCentralHeader = 0x02014b50;
constexpr uint32_t kEndRecord = 0x06054b50;
constexpr uint32_t kEndRecord64 = 0x06064b50;
constexpr uint32_t kEndLocator64 = 0x07064b50;
constexpr size_t kLocalSize = 30, kCentralSize = 46, kEndSize = 22, kEndSize64 = 56,
                 kLocatorSize = 20;
constexpr uint16_t kZip64Extra = 0x0001;

using Bytes = std::span<const std::byte>;

struct Directory {
  uint64_t num_entries = 0;
  uint64_t offset = 0;
  uint64_t size = 0;
};

// The last end record whose comment ends exactly at the end of the file.
size_t find_end_record(Bytes file) {
  require(file.size() >= kEndSize, ErrorCode::kDataCorrupt, "zip: only ", file.size(),
          " bytes, the file is cut off");
  const size_t lowest = file.size() - std::min<size_t>(file.size(), kEndSize + 0xffff);
  for (size_t at = file.size() - kEndSize + 1; at-- > lowest;) {
    if (load_le<uint32_t>(file, at) != kEndRecord) continue;
    if (load_le<uint16_t>(file, at + 20) == file.size() - at - kEndSize) return at;
  }
  throw_error(ErrorCode::kDataCorrupt,
              "zip: no end record, the file is cut off or still being written");
}

Directory read_end_record(Bytes file) {
  const size_t at = find_end_record(file);
  Directory directory{.num_entries = load_le<uint16_t>(file, at + 10),
                      .offset = load_le<uint32_t>(file, at + 16),
                      .size = load_le<uint32_t>(file, at + 12)};
  const uint16_t disk = load_le<uint16_t>(file, at + 4);
  const uint16_t first_disk = load_le<uint16_t>(file, at + 6);
  require((disk == 0 || disk == 0xffff) && (first_disk == 0 || first_disk == 0xffff),
          ErrorCode::kDataCorrupt, "zip: spans several disks, which is not supported");
  uint64_t limit = at;
  const bool is_zip64 =
      at >= kLocatorSize && load_le<uint32_t>(file, at - kLocatorSize) == kEndLocator64;
  const bool needs_zip64 = directory.num_entries == 0xffff || directory.offset == 0xffffffff ||
                           directory.size == 0xffffffff;
  require(is_zip64 || !needs_zip64 || directory.offset != 0xffffffff, ErrorCode::kDataCorrupt,
          "zip: the ZIP64 end record is missing");
  if (is_zip64 && needs_zip64) {
    const uint64_t at64 = load_le<uint64_t>(file, at - kLocatorSize + 8);
    limit = at - kLocatorSize;
    require(at64 <= limit && limit - at64 >= kEndSize64 &&
                load_le<uint32_t>(file, at64) == kEndRecord64,
            ErrorCode::kDataCorrupt, "zip: the ZIP64 end record is not where the file says");
    directory = {.num_entries = load_le<uint64_t>(file, at64 + 32),
                 .offset = load_le<uint64_t>(file, at64 + 48),
                 .size = load_le<uint64_t>(file, at64 + 40)};
    limit = at64;
  }
  require(directory.offset <= limit && directory.size <= limit - directory.offset,
          ErrorCode::kDataCorrupt, "zip: the directory of ", directory.size, " bytes at ",
          directory.offset, " does not fit the file of ", file.size(), " bytes");
  return directory;
}

struct CentralFields {
  uint64_t size = 0;
  uint64_t compressed_size = 0;
  uint64_t offset = 0;
};

// Replaces the fields that read 0xffffffff by those of the ZIP64 extra field.
void apply_zip64_extra(Bytes extra, CentralFields& fields, const std::string& name) {
  const bool is_needed = fields.size == 0xffffffff || fields.compressed_size == 0xffffffff ||
                         fields.offset == 0xffffffff;
  if (!is_needed) return;
  size_t at = 0;
  while (extra.size() - at >= 4) {
    const auto tag = load_le<uint16_t>(extra, at);
    const size_t size = load_le<uint16_t>(extra, at + 2);
    at += 4;
    if (size > extra.size() - at) break;
    if (tag != kZip64Extra) {
      at += size;
      continue;
    }
    const size_t end = at + size;
    for (uint64_t* field : {&fields.size, &fields.compressed_size, &fields.offset}) {
      if (*field != 0xffffffff) continue;
      require(end - at >= 8, ErrorCode::kDataCorrupt, "zip: member '", printable(name),
              "': its ZIP64 field is too short");
      *field = load_le<uint64_t>(extra, at);
      at += 8;
    }
    return;
  }
}

// Where the data of a member begins, after its local header.
uint64_t data_offset(Bytes file, const std::string& name, uint64_t header, uint64_t limit) {
  require(header <= limit && limit - header >= kLocalSize &&
              load_le<uint32_t>(file, header) == kLocalHeader,
          ErrorCode::kDataCorrupt, "zip: member '", printable(name), "' has no header at byte ",
          header);
  const size_t name_size = load_le<uint16_t>(file, header + 26);
  const size_t extra_size = load_le<uint16_t>(file, header + 28);
  require(limit - header - kLocalSize >= name_size + extra_size, ErrorCode::kDataCorrupt,
          "zip: the header of member '", printable(name), "' reaches into the directory");
  const std::string_view local_name = as_text(file.subspan(header + kLocalSize, name_size));
  require(local_name == name, ErrorCode::kDataCorrupt, "zip: member '", printable(name),
          "' is called '", printable(local_name), "' in its own header");
  return header + kLocalSize + name_size + extra_size;
}

struct Member {
  ZipEntry entry = {};
  uint64_t begin = 0;  // of its local header
  uint64_t end = 0;    // of its data
  size_t central_size = 0;
};

// The entry at byte `at` of the central directory. Data lies below `limit`.
Member parse_member(Bytes file, Bytes central, size_t at, uint64_t limit) {
  require(central.size() - at >= kCentralSize && load_le<uint32_t>(central, at) == kCentralHeader,
          ErrorCode::kDataCorrupt, "zip: the directory is damaged at its byte ", at);
  const size_t name_size = load_le<uint16_t>(central, at + 28);
  const size_t extra_size = load_le<uint16_t>(central, at + 30);
  const size_t comment_size = load_le<uint16_t>(central, at + 32);
  Member member{.central_size = kCentralSize + name_size + extra_size + comment_size};
  require(central.size() - at >= member.central_size, ErrorCode::kDataCorrupt,
          "zip: the directory is cut off at its byte ", at);
  ZipEntry& entry = member.entry;
  entry.name = as_text(central.subspan(at + kCentralSize, name_size));
  entry.method = load_le<uint16_t>(central, at + 10);
  entry.crc = load_le<uint32_t>(central, at + 16);
  require((load_le<uint16_t>(central, at + 8) & 0x2041) == 0, ErrorCode::kDataCorrupt,
          "zip: member '", printable(entry.name), "' is encrypted");
  require(entry.method == 0 || entry.method == 8, ErrorCode::kDataCorrupt, "zip: member '",
          printable(entry.name), "' is compressed with method ", entry.method,
          ", expected 0 (stored) or 8 (deflate)");
  CentralFields fields{.size = load_le<uint32_t>(central, at + 24),
                       .compressed_size = load_le<uint32_t>(central, at + 20),
                       .offset = load_le<uint32_t>(central, at + 42)};
  apply_zip64_extra(central.subspan(at + kCentralSize + name_size, extra_size), fields, entry.name);
  require(entry.method != 0 || fields.size == fields.compressed_size, ErrorCode::kDataCorrupt,
          "zip: member '", printable(entry.name), "' is stored, but its two sizes differ");
  member.begin = fields.offset;
  const uint64_t data = data_offset(file, entry.name, fields.offset, limit);
  require(fields.compressed_size <= limit - data, ErrorCode::kDataCorrupt, "zip: member '",
          printable(entry.name), "' claims ", fields.compressed_size, " bytes, beyond the ",
          limit - data, " that are left");
  member.end = data + fields.compressed_size;
  entry.size = fields.size;
  entry.data = file.subspan(data, fields.compressed_size);
  return member;
}

struct Span {
  uint64_t begin;
  uint64_t end;
  size_t entry;
};

void check_overlaps(std::vector<Span> spans, const std::vector<ZipEntry>& entries) {
  std::ranges::sort(spans, {}, [](const Span& span) { return std::pair(span.begin, span.end); });
  for (size_t i = 1; i < spans.size(); ++i) {
    require(spans[i].begin >= spans[i - 1].end, ErrorCode::kDataCorrupt, "zip: the members '",
            printable(entries[spans[i - 1].entry].name), "' and '",
            printable(entries[spans[i].entry].name), "' overlap");
  }
}

// Raw deflate of exactly out.size() bytes.
void inflate_exactly(const ZipEntry& entry, std::span<std::byte> out) {
  z_stream stream{};
  require(::inflateInit2(&stream, -MAX_WBITS) == Z_OK, ErrorCode::kUnavailable,
          "zip: cannot start to inflate");
  const std::unique_ptr<z_stream, decltype(&::inflateEnd)> guard(&stream, &::inflateEnd);
  constexpr size_t kPart = size_t{1} << 30;  // zlib counts in 32 bits
  auto in = entry.data;
  std::byte past_the_end{};  // tells "more than declared" from "exactly as declared"
  int status = Z_OK;
  while (status == Z_OK) {
    const size_t in_part = std::min(in.size(), kPart);
    const size_t out_part = std::min(out.size(), kPart);
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(in.data()));
    stream.avail_in = static_cast<uInt>(in_part);
    stream.next_out = reinterpret_cast<Bytef*>(out.empty() ? &past_the_end : out.data());
    stream.avail_out = static_cast<uInt>(out.empty() ? 1 : out_part);
    status = ::inflate(&stream, Z_NO_FLUSH);
    require(!out.empty() || stream.avail_out == 1, ErrorCode::kDataCorrupt, "zip: member '",
            printable(entry.name), "' inflates to more than the declared ", entry.size, " bytes");
    in = in.subspan(in_part - stream.avail_in);
    if (!out.empty()) out = out.subspan(out_part - stream.avail_out);
  }
  require(status == Z_STREAM_END && out.empty(), ErrorCode::kDataCorrupt, "zip: member '",
          printable(entry.name), "' cannot be inflated to its declared ", entry.size,
          " bytes: it is damaged");
}

}  // namespace

ZipReader::ZipReader(std::span<const std::byte> file) {
  const Directory directory = read_end_record(file);
  const Bytes central = file.subspan(directory.offset, directory.size);
  std::vector<Span> spans;
  size_t at = 0;
  while (at < central.size()) {
    Member member = parse_member(file, central, at, directory.offset);
    has_checksums_ = has_checksums_ || member.entry.crc != 0;
    require(index_.emplace(member.entry.name, entries_.size()).second, ErrorCode::kDataCorrupt,
            "zip: two members are called '", printable(member.entry.name), "'");
    spans.push_back({member.begin, member.end, entries_.size()});
    entries_.push_back(std::move(member.entry));
    at += member.central_size;
  }
  require(entries_.size() == directory.num_entries, ErrorCode::kDataCorrupt,
          "zip: the directory has ", entries_.size(), " entries, the end record says ",
          directory.num_entries);
  check_overlaps(std::move(spans), entries_);
}

const ZipEntry* ZipReader::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

void ZipReader::check_crc(const ZipEntry& entry, std::span<const std::byte> bytes) const {
  if (!has_checksums_) return;
  require(crc32(bytes) == entry.crc, ErrorCode::kDataCorrupt, "zip: member '",
          printable(entry.name),
          "' does not match its CRC-32: the file is damaged, fetch it again");
}

std::span<const std::byte> ZipReader::read_stored(const ZipEntry& entry) const {
  require(entry.method == 0, ErrorCode::kDataCorrupt, "zip: member '", printable(entry.name),
          "' is compressed, expected stored");
  check_crc(entry, entry.data);
  return entry.data;
}

void ZipReader::read_into(const ZipEntry& entry, std::span<std::byte> out) const {
  require(out.size() == entry.size, ErrorCode::kInternal, "zip: wrong buffer size");
  if (entry.method == 0) {
    std::ranges::copy(read_stored(entry), out.begin());
    return;
  }
  inflate_exactly(entry, out);
  check_crc(entry, out);
}

std::vector<std::byte> ZipReader::read_prefix(const ZipEntry& entry, size_t size) const {
  size = static_cast<size_t>(std::min<uint64_t>(size, entry.size));
  if (entry.method == 0) {
    const auto bytes = entry.data.first(size);
    return {bytes.begin(), bytes.end()};
  }
  std::vector<std::byte> out(size);
  z_stream stream{};
  require(::inflateInit2(&stream, -MAX_WBITS) == Z_OK, ErrorCode::kUnavailable,
          "zip: cannot start to inflate");
  const std::unique_ptr<z_stream, decltype(&::inflateEnd)> guard(&stream, &::inflateEnd);
  // Deflate never doubles its input: this much is enough for the prefix.
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(entry.data.data()));
  stream.avail_in = static_cast<uInt>(std::min(entry.data.size(), 2 * size + 1024));
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(size);
  const int status = ::inflate(&stream, Z_SYNC_FLUSH);
  require(status == Z_OK || status == Z_STREAM_END || status == Z_BUF_ERROR,
          ErrorCode::kDataCorrupt, "zip: member '", printable(entry.name),
          "' cannot be inflated: it is damaged");
  out.resize(size - stream.avail_out);
  return out;
}

}  // namespace vgen::io::detail
