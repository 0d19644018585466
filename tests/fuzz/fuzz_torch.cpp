// Whole .pt files, zip and legacy: every tensor is read.

#include <cstdint>

#include "vgen/core/log.h"
#include "vgen/io/torch_file.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  vgen::init_logging({.level = vgen::LogLevel::kError, .file = ""});
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const vgen::io::TorchFile file(
        vgen::io::FileBytes{"fuzz", std::as_bytes(std::span(data, size)), nullptr});
    for (const auto& leaf : file.flatten(file.root())) {
      if (leaf.value->kind == vgen::io::Value::Kind::kTensor) file.read(leaf.value->tensor());
      vgen::io::format_value(*leaf.value);
    }
  } catch (const vgen::Error&) {
  }
  return 0;
}
