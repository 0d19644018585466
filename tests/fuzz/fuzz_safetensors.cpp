// Headers of safetensors, what they say of parts, and the index of a sharded checkpoint.

#include <cstdint>

#include "vgen/io/safetensors.h"
#include "vgen/io/shards.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const vgen::io::FileBytes file{"fuzz", std::as_bytes(std::span(data, size)), nullptr};
  try {
    unsigned sum = 0;
    const vgen::io::Safetensors content = vgen::io::parse_safetensors(file);
    vgen::io::parse_parts(content.metadata);
    for (const auto& tensor : content.tensors) {
      for (const std::byte b : tensor.array.data) sum += std::to_integer<unsigned>(b);
    }
    volatile unsigned sink = sum;  // the bytes were really read
    static_cast<void>(sink);
  } catch (const vgen::Error&) {
  }
  try {
    vgen::io::parse_shard_index(file);
  } catch (const vgen::Error&) {
  }
  return 0;
}
