#include "vgen/infer/detail/shapes.h"

#include <algorithm>

#include "vgen/core/error.h"

namespace vgen::infer::detail {

Shapes::Shapes(const io::StateDict& state, std::string model)
    : source_(state.source), model_(std::move(model)) {
  for (const io::NamedArray& item : state.tensors) shapes_.emplace(item.name, &item.array.shape);
  first_ = state.tensors.empty() ? "" : state.tensors.front().name;
}

const Shapes::Shape& Shapes::at(const std::string& name, size_t rank) const {
  const auto found = shapes_.find(name);
  require(found != shapes_.end(), ErrorCode::kInvalidArgument, source_, ": not the weights of ",
          model_, ": no tensor '", name, "' among ", shapes_.size(), ", the first is '",
          printable(first_), "'");
  const Shape& shape = *found->second;
  bool is_valid = shape.size() == rank;
  for (const int64_t size : shape) is_valid = is_valid && size > 0;
  require(is_valid, ErrorCode::kInvalidArgument, source_, ": ", name, " is ", format_shape(shape),
          ", expected ", rank, " sizes above 0");
  return shape;
}

int64_t Shapes::rows(const std::string& name, const Shape& rest) const {
  const Shape& shape = at(name, rest.size() + 1);
  require(std::equal(rest.begin(), rest.end(), shape.begin() + 1), ErrorCode::kInvalidArgument,
          source_, ": ", name, " is ", format_shape(shape), ", expected the sizes ",
          format_shape(rest), " behind the first");
  return shape[0];
}

int64_t Shapes::count(const std::string& prefix, const std::string& suffix, int64_t limit) const {
  int64_t number = 0;
  while (number < limit && has(str_cat(prefix, number, suffix))) ++number;
  return number;
}

int64_t Shapes::multiple(const std::string& name, int64_t width, int64_t ch) const {
  require(width % ch == 0, ErrorCode::kInvalidArgument, source_, ": ", name, " has ", width,
          " output channels, expected a multiple of the base width ", ch);
  return width / ch;
}

}  // namespace vgen::infer::detail
