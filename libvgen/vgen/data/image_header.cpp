// probe_image: format and size of an image from its first bytes, without a codec.

#include <cctype>
#include <optional>

#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/data/image.h"

namespace vgen::data {
namespace {

/// Bytes of a file; reads past the end give 0 and are remembered.
class Bytes {
 public:
  explicit Bytes(std::span<const std::byte> data) : data_(data) {}

  uint32_t u8(size_t at) {
    if (at >= data_.size()) {
      is_short_ = true;
      return 0;
    }
    return static_cast<uint8_t>(data_[at]);
  }
  uint32_t big16(size_t at) { return u8(at) << 8 | u8(at + 1); }
  uint32_t big32(size_t at) { return big16(at) << 16 | big16(at + 2); }
  uint32_t little16(size_t at) { return u8(at) | u8(at + 1) << 8; }
  uint32_t little24(size_t at) { return little16(at) | u8(at + 2) << 16; }
  uint32_t little32(size_t at) { return little16(at) | little16(at + 2) << 16; }
  bool has(size_t at, std::string_view text) const {
    if (data_.size() < at || data_.size() - at < text.size()) return false;
    return std::string_view(reinterpret_cast<const char*>(data_.data()) + at, text.size()) == text;
  }
  size_t size() const { return data_.size(); }
  bool is_short() const { return is_short_; }

 private:
  std::span<const std::byte> data_;
  bool is_short_ = false;
};

using Size = std::optional<std::pair<int64_t, int64_t>>;

/// Walks the marker segments to the frame header (SOF0..SOF15 without DHT, JPG, DAC).
Size jpeg_size(Bytes& file) {
  size_t at = 2;
  while (at + 9 <= file.size()) {
    if (file.u8(at) != 0xff) {
      ++at;  // garbage between segments: decoders skip it too
      continue;
    }
    const uint32_t marker = file.u8(at + 1);
    if (marker == 0xff || marker == 0x00 || marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
      at += marker == 0xff ? 1 : 2;
      continue;
    }
    if (marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc) {
      return std::pair<int64_t, int64_t>{file.big16(at + 7), file.big16(at + 5)};
    }
    if (marker == 0xd9 || marker == 0xda) return {};  // picture data before any frame header
    at += 2 + file.big16(at + 2);
  }
  return {};
}

Size webp_size(Bytes& file) {
  if (file.has(12, "VP8 ")) {
    return std::pair<int64_t, int64_t>{file.little16(26) & 0x3fff, file.little16(28) & 0x3fff};
  }
  if (file.has(12, "VP8L")) {
    const uint32_t bits = file.little32(21);
    return std::pair<int64_t, int64_t>{(bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1};
  }
  if (file.has(12, "VP8X")) {
    return std::pair<int64_t, int64_t>{file.little24(24) + 1, file.little24(27) + 1};
  }
  return {};
}

Size bmp_size(Bytes& file) {
  if (file.little32(14) == 12) {
    return std::pair<int64_t, int64_t>{file.little16(18), file.little16(20)};
  }
  const auto width = static_cast<int32_t>(file.little32(18));
  const auto height = static_cast<int32_t>(file.little32(22));  // negative: rows from the top
  return std::pair<int64_t, int64_t>{width, height < 0 ? -int64_t{height} : int64_t{height}};
}

Size pnm_size(Bytes& file) {
  int64_t values[2] = {0, 0};
  size_t at = 2;
  for (int64_t& value : values) {
    while (at < file.size() && (std::isspace(file.u8(at)) || file.u8(at) == '#')) {
      if (file.u8(at) == '#') {
        while (at < file.size() && file.u8(at) != '\n') ++at;
      } else {
        ++at;
      }
    }
    if (!std::isdigit(file.u8(at))) return {};
    while (at < file.size() && std::isdigit(file.u8(at)) && value < 1'000'000'000) {
      value = value * 10 + (file.u8(at++) - '0');
    }
  }
  return std::pair{values[0], values[1]};
}

/// Width and height are the tags 256 and 257 of the first directory, 16 or 32 bits wide.
Size tiff_size(Bytes& file) {
  const bool is_big = file.u8(0) == 'M';
  const auto u16 = [&](size_t at) { return is_big ? file.big16(at) : file.little16(at); };
  const auto u32 = [&](size_t at) { return is_big ? file.big32(at) : file.little32(at); };
  const size_t directory = u32(4);
  int64_t width = 0, height = 0;
  for (size_t i = 0, count = u16(directory); i < count && !file.is_short(); ++i) {
    const size_t entry = directory + 2 + 12 * i;
    const uint32_t tag = u16(entry);
    const uint32_t value = u16(entry + 2) == 3 ? u16(entry + 8) : u32(entry + 8);
    if (tag == 256) width = value;
    if (tag == 257) height = value;
  }
  return std::pair{width, height};
}

struct Format {
  const char* name;
  bool (*is)(const Bytes& file);
  Size (*size)(Bytes& file);
};

const Format kFormats[] = {
    {"jpeg", [](const Bytes& f) { return f.has(0, "\xff\xd8\xff"); }, jpeg_size},
    {"png", [](const Bytes& f) { return f.has(0, "\x89PNG\r\n\x1a\n"); },
     [](Bytes& f) -> Size {
       return std::pair<int64_t, int64_t>{f.big32(16), f.big32(20)};
     }},
    {"webp", [](const Bytes& f) { return f.has(0, "RIFF") && f.has(8, "WEBP"); }, webp_size},
    {"bmp", [](const Bytes& f) { return f.has(0, "BM"); }, bmp_size},
    {"tiff",
     [](const Bytes& f) {
       return f.has(0, std::string_view("II*\0", 4)) || f.has(0, std::string_view("MM\0*", 4));
     },
     tiff_size},
    {"pnm",
     [](const Bytes& f) {
       for (const char* magic : {"P1", "P2", "P3", "P4", "P5", "P6"}) {
         if (f.has(0, magic) && f.size() > 2) return true;
       }
       return false;
     },
     pnm_size},
};

}  // namespace

ImageInfo probe_image(std::span<const std::byte> data) {
  require(!data.empty(), ErrorCode::kDataCorrupt, "not an image: the file is empty");
  Bytes file(data);
  for (const Format& format : kFormats) {
    if (!format.is(file)) continue;
    const Size size = format.size(file);
    require(size && !file.is_short(), ErrorCode::kDataCorrupt, format.name,
            " header is damaged or truncated");
    return {.format = format.name, .width = size->first, .height = size->second};
  }
  const std::string_view text(reinterpret_cast<const char*>(data.data()), data.size());
  throw_error(ErrorCode::kDataCorrupt, "not an image: begins with '", printable(text, 16),
              "'; expected JPEG, PNG, WebP, BMP, PNM or TIFF");
}

bool has_image_extension(std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return false;
  const std::string extension = to_lower(name.substr(dot + 1));
  for (const char* known : {"jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"}) {
    if (extension == known) return true;
  }
  return false;
}

}  // namespace vgen::data
