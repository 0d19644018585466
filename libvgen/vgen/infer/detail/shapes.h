#pragma once
// Names and shapes of a file's tensors, for reading a config off them.

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "vgen/io/state_dict.h"

namespace vgen::infer::detail {

/// Complaints are Error(kInvalidArgument): which tensor is missing or misshaped.
class Shapes {
 public:
  using Shape = std::vector<int64_t>;

  /// `model`: what they should be the weights of, "a VQGAN tokenizer". Borrows `state`.
  Shapes(const io::StateDict& state, std::string model);

  bool has(const std::string& name) const { return shapes_.contains(name); }

  /// A shape of `rank` sizes above 0.
  const Shape& at(const std::string& name, size_t rank) const;

  /// The first size of `name`, whose other sizes must be `rest`.
  int64_t rows(const std::string& name, const Shape& rest) const;

  /// How many of "<prefix>0<suffix>", "<prefix>1<suffix>", ... there are without a gap.
  int64_t count(const std::string& prefix, const std::string& suffix, int64_t limit) const;

  /// `width` as a multiple of the base width.
  int64_t multiple(const std::string& name, int64_t width, int64_t ch) const;

 private:
  std::string source_, model_, first_;
  std::unordered_map<std::string, const Shape*> shapes_;
};

}  // namespace vgen::infer::detail
