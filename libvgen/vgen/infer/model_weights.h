#pragma once
// The named tensors of a model, checked, for an engine to be built from.

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "vgen/io/state_dict.h"

namespace vgen::infer {

struct ModelWeights {
  /// By official name; contiguous, on the CPU, float32, bfloat16 or float16. They may lie in a
  /// mapped file, which they keep alive.
  std::unordered_map<std::string, at::Tensor> tensors = {};
  std::string source = {};  ///< what errors call them
  /// Files that the tensors may lie in, as io::StateDict has them.
  std::vector<std::span<const std::byte>> mappings = {};

  /// The tensor, by name. Throws Error(kNotFound).
  const at::Tensor& at(const std::string& name) const;

  /// Forgets a tensor that has been packed: its memory is free unless somebody else holds it, and
  /// the pages of a mapped file are given back.
  void drop(const std::string& name);
};

using NamedShapes = std::vector<std::pair<std::string, std::vector<int64_t>>>;

/// The tensors of `expected` that lie in a file, not copied; other names are passed over. Throws
/// Error(kInvalidArgument) in one line that names what is missing and which dimensions differ;
/// `model` is what they are not the weights of: "this GPT".
ModelWeights collect_weights(const NamedShapes& expected, const io::StateDict& state,
                             const std::string& model);

}  // namespace vgen::infer
