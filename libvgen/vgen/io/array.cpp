#include "vgen/io/array.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace vgen::io {

int64_t count_elements(const std::vector<int64_t>& shape) {
  // A zero anywhere makes the product zero, but the other sizes must still be sizes.
  int64_t product = 1;
  bool is_empty = false;
  for (const int64_t size : shape) {
    require(size >= 0, ErrorCode::kDataCorrupt, "shape ", format_shape(shape),
            " has a negative size");
    is_empty = is_empty || size == 0;
  }
  if (is_empty) return 0;
  for (const int64_t size : shape) {
    require(!__builtin_mul_overflow(product, size, &product), ErrorCode::kDataCorrupt, "shape ",
            format_shape(shape), " has more than 2^63 elements");
  }
  return product;
}

uint64_t count_bytes(Dtype dtype, const std::vector<int64_t>& shape) {
  int64_t size_bytes = 0;
  require(!__builtin_mul_overflow(count_elements(shape), static_cast<int64_t>(item_size(dtype)),
                                  &size_bytes),
          ErrorCode::kDataCorrupt, "shape ", format_shape(shape), " has more than 2^63 bytes");
  return static_cast<uint64_t>(size_bytes);
}

Array copy_array(const ArrayView& view) {
  return make_array(view.dtype, view.shape, [&](std::span<std::byte> out) {
    std::copy(view.data.begin(), view.data.end(), out.begin());
  });
}

Array normalised(Array array) {
  const auto is_odd_bool = [](std::byte b) { return b > std::byte{1}; };
  if (array.dtype == Dtype::kBool && std::ranges::any_of(array.data, is_odd_bool)) {
    return make_array(array.dtype, array.shape, [&](std::span<std::byte> out) {
      std::ranges::transform(array.data, out.begin(),
                             [](std::byte b) { return std::min(b, std::byte{1}); });
    });
  }
  const auto address = reinterpret_cast<uintptr_t>(array.data.data());
  if (address % scalar_size(array.dtype) != 0) return copy_array(array);
  return array;
}

}  // namespace vgen::io
