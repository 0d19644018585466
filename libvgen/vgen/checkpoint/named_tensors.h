#pragma once
// Between the arrays of files and the tensors of modules.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "vgen/io/state_dict.h"

namespace torch::nn {
class Module;
}

namespace vgen::checkpoint {

/// A tensor, or the part of one that a rank holds: then `tensor` is one row, the elements from
/// `begin` on of a tensor of `whole_sizes`.
struct NamedTensor {
  std::string name;
  at::Tensor tensor;
  std::vector<int64_t> whole_sizes = {};  ///< empty: `tensor` is whole
  int64_t begin = 0;

  bool is_part() const { return !whole_sizes.empty(); }
};
using NamedTensors = std::vector<NamedTensor>;

c10::ScalarType to_scalar_type(io::Dtype dtype);
/// Throws Error(kInvalidArgument) for types that files cannot hold (quantised, bits).
io::Dtype to_io_dtype(c10::ScalarType dtype);

/// The array as a CPU tensor over the same bytes, which it keeps alive. Never write to it: the
/// bytes may be a mapped file. Clone it, or copy from it.
at::Tensor as_tensor(const io::Array& array);

/// The tensor as an array. A contiguous CPU tensor shares its memory with the array, any other is
/// copied.
io::Array as_array(const at::Tensor& tensor);
std::vector<io::NamedArray> as_arrays(const NamedTensors& tensors);

/// Parameters and buffers in the order of Python's state_dict(): those of a module itself before
/// those of its children. They share memory with the module.
NamedTensors named_state(const torch::nn::Module& module);
/// The parameters alone, same order: what an optimizer takes.
NamedTensors named_parameters(const torch::nn::Module& module);

struct LoadOptions {
  std::vector<std::string> optional = {};  ///< names that may be missing or unexpected
  /// For weights that nobody will write to: tensors on the CPU of the file's dtype take the bytes
  /// of the file, mapped as they may be, instead of a copy.
  bool may_share = false;
};

/// Copies the file's values into the module's tensors, converting floating types to the module's.
/// Deferred ones (tensor/deferred_init.h) are read when they get their values.
/// Everything is checked first: on an error the module is as it was. Throws Error(kInvalidArgument)
/// for names that only the file or only the module has, and for other shapes or kinds of numbers:
/// one line with all of them, of long lists the first and the number of the others.
void load_into(torch::nn::Module& module, const io::StateDict& state,
               const LoadOptions& options = {});

/// The same for tensors that are in no module: optimizer state, EMA, parts (which take their
/// elements of the file's tensor).
void load_into(const NamedTensors& targets, const io::StateDict& state,
               const LoadOptions& options = {});

}  // namespace vgen::checkpoint
