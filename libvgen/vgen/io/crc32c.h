#pragma once
// CRC-32C (Castagnoli, RFC 3720 appendix B.4): the checksum of checkpoints, codes and TensorBoard
// records.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace vgen::io {

/// crc32c("123456789") is 0xe3069283. `crc` continues an earlier call.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t crc = 0);

/// Eight hexadecimal digits.
std::string crc32c_text(uint32_t crc);

}  // namespace vgen::io
