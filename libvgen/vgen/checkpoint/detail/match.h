#pragma once
// What is to be loaded against what is stored.

#include <string>
#include <utility>
#include <vector>

#include "vgen/checkpoint/named_tensors.h"

namespace vgen::checkpoint::detail {

/// A tensor in a file.
struct Stored {
  std::string name;
  io::Dtype dtype = io::Dtype::kFloat32;
  std::vector<int64_t> shape;
};

/// A target, its index in `stored`.
using Pairs = std::vector<std::pair<const NamedTensor*, size_t>>;

/// Which of the stored tensors goes where; `source` is what errors call the file. Parts are
/// compared by the shape of their whole. Throws Error(kInvalidArgument) as load_into() does.
Pairs match(const NamedTensors& targets, const std::vector<Stored>& stored,
            const LoadOptions& options, const std::string& source);

/// `row`: the elements of a stored tensor from `begin` on, of which the target takes those that are
/// its own. `out` is the target's memory as a row.
void copy_row(const NamedTensor& target, const at::Tensor& out, const at::Tensor& row,
              int64_t begin);

/// Whether the target may take the memory of a stored tensor instead of a copy.
bool may_share(const NamedTensor& target, io::Dtype dtype, const LoadOptions& options);

}  // namespace vgen::checkpoint::detail
