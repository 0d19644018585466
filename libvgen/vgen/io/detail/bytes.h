#pragma once
// Reading and building little-endian fields.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace vgen::io::detail {

/// The number at `offset`. The caller has checked that it lies inside.
template <std::integral T>
T load_le(std::span<const std::byte> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

template <std::integral T>
void append_le(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

inline std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

/// Whether the text is well-formed UTF-8 (RFC 3629).
bool is_utf8(std::string_view text);

/// CRC-32 of zip, continued from `crc` (0 at the start). Any length.
uint32_t crc32(std::span<const std::byte> bytes, uint32_t crc = 0);

}  // namespace vgen::io::detail
