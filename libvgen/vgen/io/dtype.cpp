#include "vgen/io/dtype.h"

#include <array>

namespace vgen::io {
namespace {

struct DtypeRow {
  Dtype dtype;
  std::string_view name;
  size_t item_size;
};

constexpr std::array<DtypeRow, 17> kRows{{
    {Dtype::kBool, "bool", 1},
    {Dtype::kUInt8, "uint8", 1},
    {Dtype::kInt8, "int8", 1},
    {Dtype::kFloat8E4M3, "float8_e4m3fn", 1},
    {Dtype::kFloat8E5M2, "float8_e5m2", 1},
    {Dtype::kUInt16, "uint16", 2},
    {Dtype::kInt16, "int16", 2},
    {Dtype::kFloat16, "float16", 2},
    {Dtype::kBFloat16, "bfloat16", 2},
    {Dtype::kUInt32, "uint32", 4},
    {Dtype::kInt32, "int32", 4},
    {Dtype::kFloat32, "float32", 4},
    {Dtype::kUInt64, "uint64", 8},
    {Dtype::kInt64, "int64", 8},
    {Dtype::kFloat64, "float64", 8},
    {Dtype::kComplex64, "complex64", 8},
    {Dtype::kComplex128, "complex128", 16},
}};

// The table is in the order of the enumerators.
const DtypeRow& row(Dtype dtype) { return kRows.at(static_cast<size_t>(dtype)); }

}  // namespace

size_t item_size(Dtype dtype) { return row(dtype).item_size; }

size_t scalar_size(Dtype dtype) {
  const bool is_complex = dtype == Dtype::kComplex64 || dtype == Dtype::kComplex128;
  return is_complex ? item_size(dtype) / 2 : item_size(dtype);
}

std::string_view dtype_name(Dtype dtype) { return row(dtype).name; }

std::optional<Dtype> parse_dtype(std::string_view name) {
  for (const DtypeRow& candidate : kRows) {
    if (candidate.name == name) return candidate.dtype;
  }
  return std::nullopt;
}

}  // namespace vgen::io
