#include "vgen/infer/model_weights.h"

#include <functional>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/io/mapped_file.h"

namespace vgen::infer {

namespace {

// "a, b, c and 5 more"
std::string first_few(const std::vector<std::string>& names) {
  constexpr size_t kShown = 4;
  if (names.size() <= kShown) return join(names, ", ");
  return str_cat(join({names.begin(), names.begin() + kShown}, ", "), " and ",
                 names.size() - kShown, " more");
}

}  // namespace

const at::Tensor& ModelWeights::at(const std::string& name) const {
  const auto found = tensors.find(name);
  require(found != tensors.end(), ErrorCode::kNotFound, source, ": no tensor '", name, "'");
  return found->second;
}

void ModelWeights::drop(const std::string& name) {
  const at::Tensor& tensor = at(name);
  const std::span bytes(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes());
  for (const std::span<const std::byte> file : mappings) {
    const bool is_inside =
        std::greater_equal<>()(bytes.data(), file.data()) &&
        std::less_equal<>()(bytes.data() + bytes.size(), file.data() + file.size());
    if (is_inside) io::forget_pages(bytes);
  }
  tensors.erase(name);
}

ModelWeights collect_weights(const NamedShapes& expected, const io::StateDict& state,
                             const std::string& model) {
  std::unordered_map<std::string, const io::Array*> by_name;
  for (const io::NamedArray& tensor : state.tensors) by_name[tensor.name] = &tensor.array;
  ModelWeights weights{.source = state.source, .mappings = state.mappings};
  std::vector<std::string> missing, mismatched;
  for (const auto& [name, shape] : expected) {
    const auto found = by_name.find(name);
    if (found == by_name.end()) {
      missing.push_back(name);
      continue;
    }
    const io::Array& array = *found->second;
    if (array.shape != shape) {
      mismatched.push_back(
          str_cat(name, " is ", format_shape(array.shape), ", expected ", format_shape(shape)));
      continue;
    }
    require(array.dtype == io::Dtype::kFloat32 || array.dtype == io::Dtype::kBFloat16 ||
                array.dtype == io::Dtype::kFloat16,
            ErrorCode::kInvalidArgument, state.source, ": ", name, " holds ",
            io::dtype_name(array.dtype), ", expected float32, bfloat16 or float16");
    weights.tensors.emplace(name, checkpoint::as_tensor(array));
  }
  if (!missing.empty() || !mismatched.empty()) {
    std::string message = str_cat(state.source, ": not the weights of ", model);
    if (!mismatched.empty()) message += "; " + first_few(mismatched);
    if (!missing.empty()) message += "; missing " + first_few(missing);
    throw Error(ErrorCode::kInvalidArgument, message);
  }
  return weights;
}

}  // namespace vgen::infer
