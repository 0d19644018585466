#include "vgen/io/detail/bytes.h"

#include <libdeflate.h>

namespace vgen::io::detail {

uint32_t crc32(std::span<const std::byte> bytes, uint32_t crc) {
  return libdeflate_crc32(crc, bytes.data(), bytes.size());  // some ten times zlib's speed
}

bool is_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  for (size_t i = 0; i < text.size();) {
    const unsigned first = byte(i);
    const size_t size = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
    if (size == 0 || size > text.size() - i) return false;
    for (size_t j = 1; j < size; ++j) {
      if ((byte(i + j) & 0xc0) != 0x80) return false;
    }
    if (size > 2) {  // overlong forms, surrogates, beyond U+10FFFF
      const unsigned second = byte(i + 1);
      if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) ||
          (first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) {
        return false;
      }
    }
    i += size;
  }
  return true;
}

}  // namespace vgen::io::detail
