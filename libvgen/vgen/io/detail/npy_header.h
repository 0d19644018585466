#pragma once
// The header of .npy: magic, version, and a Python dict literal.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "vgen/io/dtype.h"

namespace vgen::io::detail {

struct NpyHeader {
  Dtype dtype = Dtype::kFloat32;
  std::vector<int64_t> shape;
  bool is_big_endian = false;
  bool is_fortran_order = false;
  size_t data_offset = 0;
};

/// Throws Error(kDataCorrupt); the caller adds the file.
NpyHeader parse_npy_header(std::span<const std::byte> file);

/// Version 1.0 (2.0 when the shape is too long for it), padded to a multiple of 64 bytes.
/// Throws Error(kInvalidArgument) for dtypes that NumPy lacks.
std::string make_npy_header(Dtype dtype, const std::vector<int64_t>& shape);

}  // namespace vgen::io::detail
