// Configs: what parses must also survive being written and read again.

#include <cstdint>

#include "vgen/core/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  vgen::ConfigNode node;
  try {
    node = vgen::parse_yaml({reinterpret_cast<const char*>(data), size}, "fuzz");
  } catch (const vgen::Error&) {
    return 0;
  }
  const std::string text = vgen::dump_yaml(node);
  try {
    if (vgen::dump_yaml(vgen::parse_yaml(text, "again")) == text) return 0;
  } catch (const vgen::Error&) {
  }
  __builtin_trap();  // the written text means something else
}
