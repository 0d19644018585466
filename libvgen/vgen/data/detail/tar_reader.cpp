#include "vgen/data/detail/tar_reader.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "vgen/core/error.h"

namespace vgen::data::detail {
namespace {

constexpr uint64_t kBlock = 512;
constexpr uint64_t kMaxText = 1 << 20;  // of a long name or a pax header

/// Octal digits, or base 256 when the first bit is set (GNU, for 8 GiB and more).
uint64_t parse_number(std::span<const char> field, const char* what) {
  if (static_cast<unsigned char>(field[0]) & 0x80) {
    uint64_t value = static_cast<unsigned char>(field[0]) & 0x7f;
    require(value == 0, ErrorCode::kDataCorrupt, what, " is negative or too large");
    for (const char c : field.subspan(1)) {
      require(value < uint64_t{1} << 48, ErrorCode::kDataCorrupt, what, " is too large");
      value = value << 8 | static_cast<unsigned char>(c);
    }
    return value;
  }
  uint64_t value = 0;
  size_t i = 0;
  while (i < field.size() && field[i] == ' ') ++i;
  for (; i < field.size() && field[i] >= '0' && field[i] <= '7'; ++i) {
    value = value << 3 | static_cast<uint64_t>(field[i] - '0');
  }
  require(i == field.size() || field[i] == ' ' || field[i] == '\0', ErrorCode::kDataCorrupt, what,
          " is not an octal number");
  return value;
}

uint64_t padded(uint64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

}  // namespace

struct TarReader::Header {
  std::array<char, kBlock> bytes;

  std::span<const char> field(size_t at, size_t size) const { return {bytes.data() + at, size}; }
  std::string text(size_t at, size_t size) const {
    const char* begin = bytes.data() + at;
    return {begin, std::find(begin, begin + size, '\0')};
  }
  bool is_zero() const {
    return std::all_of(bytes.begin(), bytes.end(), [](char c) { return c == 0; });
  }
  char type() const { return bytes[156]; }
  bool is_ustar() const { return std::memcmp(bytes.data() + 257, "ustar", 5) == 0; }
  bool is_gnu() const { return std::memcmp(bytes.data() + 257, "ustar  ", 7) == 0; }

  /// The checksum counts its own field as spaces; old writers summed signed bytes.
  void check() const {
    int64_t sum = 0, signed_sum = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
      const char c = i >= 148 && i < 156 ? ' ' : bytes[i];
      sum += static_cast<unsigned char>(c);
      signed_sum += static_cast<signed char>(c);
    }
    const auto stored = static_cast<int64_t>(parse_number(field(148, 8), "checksum"));
    require(stored == sum || stored == signed_sum, ErrorCode::kDataCorrupt, "checksum ", stored,
            ", expected ", sum);
  }

  std::string name() const {
    const std::string prefix = is_ustar() && !is_gnu() ? text(345, 155) : "";
    return prefix.empty() ? text(0, 100) : str_cat(prefix, "/", text(0, 100));
  }
};

TarReader::TarReader(const ByteSource& source, uint64_t begin, uint64_t end, std::string where)
    : source_(source), begin_(begin), at_(begin), end_(end), where_(std::move(where)) {}

std::optional<TarMember> TarReader::next() {
  while (true) {
    const uint64_t start = at_;
    try {
      require(end_ - at_ >= kBlock, ErrorCode::kDataCorrupt,
              "the tar ends without its end mark: truncated, get it again");
      Header header;
      source_.read(at_, std::as_writable_bytes(std::span(header.bytes)));
      if (header.is_zero()) return {};
      header.check();
      const char type = header.type();
      const uint64_t stored_size = parse_number(header.field(124, 12), "size");
      const bool is_extension = type == 'x' || type == 'g' || type == 'L' || type == 'K';
      const uint64_t size = is_extension ? stored_size : next_size_.value_or(stored_size);
      const uint64_t left = end_ - at_ - kBlock;
      require(size <= left && padded(size) - size <= left - size, ErrorCode::kDataCorrupt, "its ",
              size, " bytes end beyond the tar: truncated, get it again");
      const uint64_t offset = at_ + kBlock;
      at_ = offset + padded(size);
      ++entry_;
      if (type == 'x') {
        read_pax(offset, size);
      } else if (type == 'L') {
        next_name_ = read_text(offset, size);
      } else if (type != 'g' && type != 'K') {
        TarMember member{
            .name = next_name_.value_or(header.name()), .offset = offset, .size = size};
        member.is_file = type == '0' || type == '\0' || type == '7';
        member.is_folder = type == '5' || (member.is_file && member.name.ends_with('/'));
        member.is_file = member.is_file && !member.is_folder;
        next_name_.reset();
        next_size_.reset();
        return member;
      }
    } catch (Error& error) {
      error.add_context(str_cat(where_, ": entry ", entry_, " at byte ", start - begin_));
      throw;
    }
  }
}

std::string TarReader::read_text(uint64_t offset, uint64_t size) const {
  require(size <= kMaxText, ErrorCode::kDataCorrupt, "a name of ", size, " bytes");
  std::string text(size, '\0');
  source_.read(offset, std::as_writable_bytes(std::span(text)));
  return text.substr(0, text.find('\0'));
}

/// Records "<length> <key>=<value>\n", the length counting all of the record.
void TarReader::read_pax(uint64_t offset, uint64_t size) {
  require(size <= kMaxText, ErrorCode::kDataCorrupt, "a pax header of ", size, " bytes");
  std::string text(size, '\0');
  source_.read(offset, std::as_writable_bytes(std::span(text)));
  std::string_view rest = text;
  while (!rest.empty() && rest[0] != '\0') {
    const size_t space = rest.find(' ');
    int64_t length = 0;
    const bool is_valid = space != std::string_view::npos &&
                          parse_int(rest.substr(0, space), length) &&
                          length > static_cast<int64_t>(space) + 1 &&
                          length <= static_cast<int64_t>(rest.size()) && rest[length - 1] == '\n';
    require(is_valid, ErrorCode::kDataCorrupt, "damaged pax header");
    const std::string_view record = rest.substr(space + 1, length - space - 2);
    rest.remove_prefix(static_cast<size_t>(length));
    const size_t equals = record.find('=');
    require(equals != std::string_view::npos, ErrorCode::kDataCorrupt, "damaged pax header");
    const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
    if (key == "path") next_name_ = std::string(value);
    if (key == "size") {
      int64_t number = 0;
      require(parse_int(value, number) && number >= 0, ErrorCode::kDataCorrupt, "pax size '",
              printable(value), "' is not a number");
      next_size_ = static_cast<uint64_t>(number);
    }
  }
}

}  // namespace vgen::data::detail
