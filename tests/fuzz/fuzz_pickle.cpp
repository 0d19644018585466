// The pickle machine alone: no checksum stands between the fuzzer and it.

#include <cstdint>

#include "vgen/io/detail/unpickler.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  for (const bool is_legacy : {false, true}) {
    try {
      vgen::io::detail::PickleArena arena;
      vgen::io::detail::Unpickler unpickler(std::as_bytes(std::span(data, size)), arena, is_legacy);
      vgen::io::format_value(*unpickler.run());
    } catch (const vgen::Error&) {
    }
  }
  return 0;
}
