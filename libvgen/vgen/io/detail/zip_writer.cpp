#include "vgen/io/detail/zip_writer.h"

#include <algorithm>
#include <limits>

#include "vgen/core/error.h"
#include "vgen/io/detail/bytes.h"

namespace vgen::io::detail {
namespace {

constexpr uint32_t kMax32 = std::numeric_limits<uint32_t>::max();
constexpr uint16_t kMax16 = std::numeric_limits<uint16_t>::max();
constexpr uint16_t kVersion = 20, kVersionZip64 = 45;
constexpr uint16_t kNamesAreUtf8 = 0x0800;
constexpr uint16_t kDosDate = 0x0021;  // 1980-01-01
constexpr size_t kCrcInLocalHeader = 14;

uint32_t clamp32(uint64_t value) {
  return static_cast<uint32_t>(std::min<uint64_t>(value, kMax32));
}

// The fields that local and central headers share: version to checksum to sizes.
void append_common(std::string& out, uint16_t version, uint32_t crc, uint32_t size) {
  append_le<uint16_t>(out, version);
  append_le<uint16_t>(out, kNamesAreUtf8);
  append_le<uint16_t>(out, 0);  // stored
  append_le<uint16_t>(out, 0);  // time
  append_le<uint16_t>(out, kDosDate);
  append_le<uint32_t>(out, crc);
  append_le<uint32_t>(out, size);  // compressed
  append_le<uint32_t>(out, size);
}

// Extra field "FB" full of Z, as PyTorch pads, so that data of `offset` lands on the alignment.
std::string padding_extra(uint64_t offset, size_t alignment) {
  std::string extra;
  if (offset % alignment == 0) return extra;
  const size_t fill = (alignment - (offset + 4) % alignment) % alignment;
  append_le<uint16_t>(extra, 0x4246);
  append_le<uint16_t>(extra, static_cast<uint16_t>(fill));
  return extra.append(fill, 'Z');
}

}  // namespace

ZipWriter::ZipWriter(const std::string& path, size_t alignment)
    : file_(path), alignment_(alignment) {}

void ZipWriter::begin(const std::string& name, uint64_t size) {
  require(!is_open_, ErrorCode::kInternal, "zip: a member is still open");
  require(name.size() <= 4096, ErrorCode::kInvalidArgument, file_.path(), ": the name '",
          printable(name), "' is longer than 4096 bytes");
  const bool is_zip64 = size >= kMax32;
  std::string extra;
  if (is_zip64) {
    append_le<uint16_t>(extra, 0x0001);
    append_le<uint16_t>(extra, 16);
    append_le<uint64_t>(extra, size);
    append_le<uint64_t>(extra, size);
  }
  extra += padding_extra(file_.size() + 30 + name.size() + extra.size(), alignment_);
  std::string header;
  append_le<uint32_t>(header, 0x04034b50);
  append_common(header, is_zip64 ? kVersionZip64 : kVersion, 0, clamp32(size));
  append_le<uint16_t>(header, static_cast<uint16_t>(name.size()));
  append_le<uint16_t>(header, static_cast<uint16_t>(extra.size()));
  members_.push_back({.name = name, .size = size, .offset = file_.size()});
  file_.write(header + name + extra);
  left_ = size;
  is_open_ = true;
}

void ZipWriter::write(std::span<const std::byte> bytes) {
  require(is_open_ && bytes.size() <= left_, ErrorCode::kInternal, file_.path(),
          ": more bytes than the member was announced with");
  Member& member = members_.back();
  member.crc = crc32(bytes, member.crc);
  file_.write(bytes);
  left_ -= bytes.size();
}

void ZipWriter::end() {
  require(is_open_ && left_ == 0, ErrorCode::kInternal, file_.path(), ": ", left_,
          " bytes of the member are missing");
  is_open_ = false;
  const Member& member = members_.back();
  file_.patch(member.offset + kCrcInLocalHeader, std::as_bytes(std::span(&member.crc, 1)));
}

void ZipWriter::add(const std::string& name, std::span<const std::byte> bytes) {
  begin(name, bytes.size());
  write(bytes);
  end();
}

void ZipWriter::finish() {
  require(!is_open_, ErrorCode::kInternal, "zip: a member is still open");
  const uint64_t directory_offset = file_.size();
  for (const Member& member : members_) {
    std::string extra;
    if (member.size >= kMax32) {
      append_le<uint64_t>(extra, member.size);
      append_le<uint64_t>(extra, member.size);
    }
    if (member.offset >= kMax32) append_le<uint64_t>(extra, member.offset);
    const bool is_zip64 = !extra.empty();
    if (is_zip64) {
      std::string head;
      append_le<uint16_t>(head, 0x0001);
      append_le<uint16_t>(head, static_cast<uint16_t>(extra.size()));
      extra.insert(0, head);
    }
    std::string header;
    append_le<uint32_t>(header, 0x02014b50);
    append_le<uint16_t>(header, is_zip64 ? kVersionZip64 : kVersion);  // made by
    append_common(header, is_zip64 ? kVersionZip64 : kVersion, member.crc, clamp32(member.size));
    append_le<uint16_t>(header, static_cast<uint16_t>(member.name.size()));
    append_le<uint16_t>(header, static_cast<uint16_t>(extra.size()));
    header.append(10, '\0');  // comment size, disk, internal and external attributes
    append_le<uint32_t>(header, clamp32(member.offset));
    file_.write(header + member.name + extra);
  }
  write_end_records(directory_offset);
  file_.commit();
}

void ZipWriter::write_end_records(uint64_t directory_offset) {
  const uint64_t directory_size = file_.size() - directory_offset;
  const uint64_t count = members_.size();
  std::string out;
  if (count >= kMax16 || directory_offset >= kMax32 || directory_size >= kMax32) {
    const uint64_t at = file_.size();
    append_le<uint32_t>(out, 0x06064b50);
    append_le<uint64_t>(out, 44);  // bytes of this record that follow
    append_le<uint16_t>(out, kVersionZip64);
    append_le<uint16_t>(out, kVersionZip64);
    append_le<uint32_t>(out, 0);
    append_le<uint32_t>(out, 0);
    append_le<uint64_t>(out, count);
    append_le<uint64_t>(out, count);
    append_le<uint64_t>(out, directory_size);
    append_le<uint64_t>(out, directory_offset);
    append_le<uint32_t>(out, 0x07064b50);
    append_le<uint32_t>(out, 0);
    append_le<uint64_t>(out, at);
    append_le<uint32_t>(out, 1);
  }
  const auto count16 = static_cast<uint16_t>(std::min<uint64_t>(count, kMax16));
  append_le<uint32_t>(out, 0x06054b50);
  append_le<uint32_t>(out, 0);  // disks
  append_le<uint16_t>(out, count16);
  append_le<uint16_t>(out, count16);
  append_le<uint32_t>(out, clamp32(directory_size));
  append_le<uint32_t>(out, clamp32(directory_offset));
  append_le<uint16_t>(out, 0);  // comment
  file_.write(out);
}

}  // namespace vgen::io::detail
