// The index of a checkpoint of ours and what shards say of their parts. What is accepted must also
// survive being written and read again.

#include <cstdint>

#include "vgen/checkpoint/detail/index.h"

namespace {

template <class Body>
void must_not_throw(const Body& body) {
  try {
    body();
  } catch (const vgen::Error&) {
    __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace detail = vgen::checkpoint::detail;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const detail::Index index = detail::parse_index(text);
    must_not_throw([&] { detail::parse_index(detail::dump_index(index)); });
  } catch (const vgen::Error&) {
  }
  const std::string key(vgen::io::kPartsKey);
  try {
    const auto parts = vgen::io::parse_parts({{key, std::string(text)}});
    must_not_throw([&] { vgen::io::parse_parts({{key, vgen::io::dump_parts(parts)}}); });
  } catch (const vgen::Error&) {
  }
  return 0;
}
