#pragma once
// NumPy scalars inside pickles: a dtype text and the raw bytes.

#include <string_view>

#include "vgen/io/torch_value.h"

namespace vgen::io::detail {

/// Makes `value` a kBool, kInt or kFloat. dtype: "<f8", "f4", "|b1". Throws Error(kDataCorrupt).
void decode_numpy_scalar(std::string_view dtype, std::string_view bytes, Value& value);

}  // namespace vgen::io::detail
