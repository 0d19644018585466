#pragma once
// Element types of arrays on disk. Names are PyTorch's: "float32", "bfloat16", "int64".

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace vgen::io {

enum class Dtype : uint8_t {
  kBool,  ///< one byte, 0 or 1
  kUInt8,
  kInt8,
  kFloat8E4M3,  ///< float8_e4m3fn
  kFloat8E5M2,
  kUInt16,
  kInt16,
  kFloat16,
  kBFloat16,
  kUInt32,
  kInt32,
  kFloat32,
  kUInt64,
  kInt64,
  kFloat64,
  kComplex64,   ///< two float32
  kComplex128,  ///< two float64
};

/// Bytes per element.
size_t item_size(Dtype dtype);

/// Bytes of the unit that byte order applies to: item_size, halved for complex types.
size_t scalar_size(Dtype dtype);

/// "float32"
std::string_view dtype_name(Dtype dtype);

/// The inverse of dtype_name; no value for any other text.
std::optional<Dtype> parse_dtype(std::string_view name);

/// The dtype of a C++ number type: dtype_of<float>() is kFloat32.
template <class T>
constexpr Dtype dtype_of();
template <>
constexpr Dtype dtype_of<bool>() {
  return Dtype::kBool;
}
template <>
constexpr Dtype dtype_of<uint8_t>() {
  return Dtype::kUInt8;
}
template <>
constexpr Dtype dtype_of<int8_t>() {
  return Dtype::kInt8;
}
template <>
constexpr Dtype dtype_of<uint16_t>() {
  return Dtype::kUInt16;
}
template <>
constexpr Dtype dtype_of<int16_t>() {
  return Dtype::kInt16;
}
template <>
constexpr Dtype dtype_of<uint32_t>() {
  return Dtype::kUInt32;
}
template <>
constexpr Dtype dtype_of<int32_t>() {
  return Dtype::kInt32;
}
template <>
constexpr Dtype dtype_of<float>() {
  return Dtype::kFloat32;
}
template <>
constexpr Dtype dtype_of<uint64_t>() {
  return Dtype::kUInt64;
}
template <>
constexpr Dtype dtype_of<int64_t>() {
  return Dtype::kInt64;
}
template <>
constexpr Dtype dtype_of<double>() {
  return Dtype::kFloat64;
}

}  // namespace vgen::io
