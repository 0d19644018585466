// .npy and .npz, told by the first bytes.

#include <cstdint>

#include "vgen/io/npy.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const vgen::io::FileBytes file{"fuzz", std::as_bytes(std::span(data, size)), nullptr};
  if (size < 2 || data[0] != 'P') {
    try {
      vgen::io::parse_npy(file);
    } catch (const vgen::Error&) {
    }
    return 0;
  }
  try {
    const vgen::io::NpzFile npz(file);
    for (const std::string& name : npz.names()) {
      for (const bool must_read : {false, true}) {
        try {
          must_read ? static_cast<void>(npz.read(name)) : static_cast<void>(npz.describe(name));
        } catch (const vgen::Error&) {
        }
      }
    }
  } catch (const vgen::Error&) {
  }
  return 0;
}
