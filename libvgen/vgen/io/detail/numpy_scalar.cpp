#include "vgen/io/detail/numpy_scalar.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "vgen/core/error.h"

namespace vgen::io::detail {
namespace {

template <class T>
T load(std::string_view bytes) {
  T number;
  std::memcpy(&number, bytes.data(), sizeof(T));
  return number;
}

template <class T>
void set_integer(Value& value, std::string_view bytes) {
  const T number = load<T>(bytes);
  require(std::in_range<int64_t>(number), ErrorCode::kDataCorrupt, "numpy scalar: ", number,
          " does not fit 64 bits");
  value.kind = Value::Kind::kInt;
  value.data = static_cast<int64_t>(number);
}

template <class T>
void set_real(Value& value, std::string_view bytes) {
  value.kind = Value::Kind::kFloat;
  value.data = static_cast<double>(load<T>(bytes));
}

void set_bool(Value& value, std::string_view bytes) {
  value.kind = Value::Kind::kBool;
  value.data = bytes[0] != 0;
}

struct Row {
  std::string_view dtype;
  size_t size;
  void (*set)(Value&, std::string_view);
};
constexpr Row kRows[] = {
    {"b1", 1, set_bool},
    {"i1", 1, set_integer<int8_t>},
    {"u1", 1, set_integer<uint8_t>},
    {"i2", 2, set_integer<int16_t>},
    {"u2", 2, set_integer<uint16_t>},
    {"i4", 4, set_integer<int32_t>},
    {"u4", 4, set_integer<uint32_t>},
    {"i8", 8, set_integer<int64_t>},
    {"u8", 8, set_integer<uint64_t>},
    {"f4", 4, set_real<float>},
    {"f8", 8, set_real<double>},
};

}  // namespace

void decode_numpy_scalar(std::string_view dtype, std::string_view bytes, Value& value) {
  const bool has_order =
      !dtype.empty() && std::string_view("<>|=").find(dtype[0]) != std::string_view::npos;
  const auto* row = std::ranges::find(kRows, dtype.substr(has_order ? 1 : 0), &Row::dtype);
  require(row != std::end(kRows), ErrorCode::kDataCorrupt, "numpy scalar: type '", printable(dtype),
          "' is not supported");
  require(bytes.size() == row->size, ErrorCode::kDataCorrupt, "numpy scalar: ", bytes.size(),
          " bytes for type '", printable(dtype), "'");
  std::string little(bytes);
  if (dtype[0] == '>') std::ranges::reverse(little);
  row->set(value, little);
}

}  // namespace vgen::io::detail
