#pragma once
// Arrays as they lie in files: a dtype, a shape and row-major little-endian bytes.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "vgen/core/error.h"
#include "vgen/io/dtype.h"

namespace vgen::io {

/// Product of the sizes; 1 for rank 0. Throws Error(kDataCorrupt) for a negative size and for a
/// product above 2^63 - 1.
int64_t count_elements(const std::vector<int64_t>& shape);

/// count_elements times the item size, with the same checks.
uint64_t count_bytes(Dtype dtype, const std::vector<int64_t>& shape);

/// Borrows its bytes. `data` has exactly count_bytes(dtype, shape) bytes.
struct ArrayView {
  Dtype dtype = Dtype::kFloat32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;

  int64_t num_elements() const { return static_cast<int64_t>(data.size() / item_size(dtype)); }

  /// The elements. T must be the dtype's own C++ type, else Error(kInvalidArgument). Half
  /// precision, float8 and complex have none: use `data`.
  template <class T>
  std::span<const T> as() const {
    require(dtype_of<T>() == dtype, ErrorCode::kInvalidArgument, "array holds ", dtype_name(dtype),
            ", expected ", dtype_name(dtype_of<T>()));
    return {reinterpret_cast<const T*>(data.data()), data.size() / sizeof(T)};
  }
};

/// An array that keeps its bytes alive: memory of its own or a mapped file. They are read-only and
/// aligned to their element; copies share them. An Array without an owner is only a view.
struct Array : ArrayView {
  std::shared_ptr<const void> owner;

  Array() = default;
  Array(ArrayView view, std::shared_ptr<const void> bytes_owner)
      : ArrayView(std::move(view)), owner(std::move(bytes_owner)) {}
};

/// A new array; fill(std::span<std::byte>) must write all its bytes.
template <class Fill>
Array make_array(Dtype dtype, std::vector<int64_t> shape, Fill&& fill) {
  const uint64_t size_bytes = count_bytes(dtype, shape);
  std::shared_ptr<std::byte[]> bytes(new std::byte[size_bytes]);
  fill(std::span<std::byte>(bytes.get(), size_bytes));
  const std::span<const std::byte> data(bytes.get(), size_bytes);
  return {ArrayView{dtype, std::move(shape), data}, std::move(bytes)};
}

/// make_array<float>({2}, {0.5f, 1.5f}). The count must fit the shape.
template <class T>
Array make_array(std::vector<int64_t> shape, const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span<const T>(values));
  require(count_bytes(dtype_of<T>(), shape) == bytes.size(), ErrorCode::kInvalidArgument,
          "array: ", values.size(), " values for another shape");
  return make_array(dtype_of<T>(), std::move(shape), [&](std::span<std::byte> out) {
    std::copy(bytes.begin(), bytes.end(), out.begin());
  });
}

/// An array with memory of its own.
Array copy_array(const ArrayView& view);

/// The same values, fit to be handed out: copied when the bytes are not aligned to the element, and
/// bools that are neither 0 nor 1 made 1.
Array normalised(Array array);

/// A tensor of a file.
struct NamedArray {
  std::string name;
  Array array;
};

}  // namespace vgen::io
