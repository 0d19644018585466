#include "vgen/checkpoint/named_tensors.h"

#include <torch/torch.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "vgen/checkpoint/detail/match.h"
#include "vgen/tensor/deferred_init.h"

namespace vgen::checkpoint {

namespace {

constexpr std::pair<io::Dtype, c10::ScalarType> kDtypes[] = {
    {io::Dtype::kBool, c10::kBool},
    {io::Dtype::kUInt8, c10::kByte},
    {io::Dtype::kInt8, c10::kChar},
    {io::Dtype::kFloat8E4M3, c10::kFloat8_e4m3fn},
    {io::Dtype::kFloat8E5M2, c10::kFloat8_e5m2},
    {io::Dtype::kUInt16, c10::kUInt16},
    {io::Dtype::kInt16, c10::kShort},
    {io::Dtype::kFloat16, c10::kHalf},
    {io::Dtype::kBFloat16, c10::kBFloat16},
    {io::Dtype::kUInt32, c10::kUInt32},
    {io::Dtype::kInt32, c10::kInt},
    {io::Dtype::kFloat32, c10::kFloat},
    {io::Dtype::kUInt64, c10::kUInt64},
    {io::Dtype::kInt64, c10::kLong},
    {io::Dtype::kFloat64, c10::kDouble},
    {io::Dtype::kComplex64, c10::kComplexFloat},
    {io::Dtype::kComplex128, c10::kComplexDouble},
};

void collect(const torch::nn::Module& module, const std::string& prefix, bool with_buffers,
             NamedTensors& out) {
  for (const auto& item : module.named_parameters(/*recurse=*/false)) {
    out.push_back({prefix + item.key(), item.value()});
  }
  if (with_buffers) {
    for (const auto& item : module.named_buffers(/*recurse=*/false)) {
      out.push_back({prefix + item.key(), item.value()});
    }
  }
  for (const auto& child : module.named_children()) {
    collect(*child.value(), str_cat(prefix, child.key(), "."), with_buffers, out);
  }
}

std::string first_names(const std::vector<std::string>& names) {
  constexpr size_t kShown = 8;
  std::vector<std::string> shown;
  for (size_t i = 0; i < std::min(kShown, names.size()); ++i) {
    shown.push_back(printable(names[i], 160));
  }
  std::string text = join(shown, ", ");
  if (names.size() > kShown) text += str_cat(" and ", names.size() - kShown, " more");
  return text;
}

bool is_convertible(c10::ScalarType from, c10::ScalarType to) {
  if (from == to) return true;
  if (c10::isComplexType(from) || c10::isComplexType(to)) return false;
  return c10::isFloatingType(from) == c10::isFloatingType(to) &&
         (from == c10::kBool) == (to == c10::kBool);
}

std::vector<int64_t> whole_sizes(const NamedTensor& target) {
  return target.is_part() ? target.whole_sizes : target.tensor.sizes().vec();
}

std::string mismatch(const NamedTensor& target, const detail::Stored& stored) {
  const auto expected = whole_sizes(target);
  if (stored.shape != expected) {
    return str_cat(" is ", format_shape(stored.shape), ", expected ", format_shape(expected));
  }
  if (!is_convertible(to_scalar_type(stored.dtype), target.tensor.scalar_type())) {
    return str_cat(" is ", io::dtype_name(stored.dtype), ", expected ",
                   io::dtype_name(to_io_dtype(target.tensor.scalar_type())));
  }
  return "";
}

// What a file and a module do not share.
struct Difference {
  std::vector<std::string> missing;     // in the module, not in the file
  std::vector<std::string> unexpected;  // in the file, not in the module
  std::vector<std::string> mismatched;  // "conv_in.weight is [64, 3, 3, 3], expected [128, ...]"

  bool is_empty() const { return missing.empty() && unexpected.empty() && mismatched.empty(); }

  std::string text() const {
    std::vector<std::string> parts;
    const auto add = [&](const std::vector<std::string>& names, const char* what) {
      if (!names.empty()) parts.push_back(str_cat(names.size(), what, first_names(names)));
    };
    add(missing, " missing: ");
    add(unexpected, " unexpected: ");
    add(mismatched, " do not fit: ");
    return join(parts, "; ");
  }
};

}  // namespace

c10::ScalarType to_scalar_type(io::Dtype dtype) {
  const auto* found =
      std::ranges::find(kDtypes, dtype, &std::pair<io::Dtype, c10::ScalarType>::first);
  require(found != std::end(kDtypes), ErrorCode::kInternal, "dtype without a LibTorch type");
  return found->second;
}

io::Dtype to_io_dtype(c10::ScalarType dtype) {
  const auto* found =
      std::ranges::find(kDtypes, dtype, &std::pair<io::Dtype, c10::ScalarType>::second);
  require(found != std::end(kDtypes), ErrorCode::kInvalidArgument, "tensors of type ",
          c10::toString(dtype), " cannot be stored; convert them first");
  return found->first;
}

at::Tensor as_tensor(const io::Array& array) {
  const auto options = at::TensorOptions().dtype(to_scalar_type(array.dtype));
  if (array.data.empty()) return at::empty(array.shape, options);
  auto* bytes = const_cast<std::byte*>(array.data.data());  // from_blob wants it; not written to
  return at::from_blob(
      bytes, array.shape, [owner = array.owner](void*) {}, options);
}

io::Array as_array(const at::Tensor& tensor) {
  auto held = std::make_shared<const at::Tensor>(
      tensor.detach().to(at::kCPU).contiguous(at::MemoryFormat::Contiguous));
  io::ArrayView view;
  view.dtype = to_io_dtype(held->scalar_type());
  view.shape = held->sizes().vec();
  view.data = {static_cast<const std::byte*>(held->const_data_ptr()), held->nbytes()};
  return {std::move(view), std::move(held)};
}

std::vector<io::NamedArray> as_arrays(const NamedTensors& tensors) {
  std::vector<io::NamedArray> arrays;
  arrays.reserve(tensors.size());
  for (const NamedTensor& item : tensors) arrays.push_back({item.name, as_array(item.tensor)});
  return arrays;
}

NamedTensors named_state(const torch::nn::Module& module) {
  NamedTensors tensors;
  collect(module, "", /*with_buffers=*/true, tensors);
  return tensors;
}

NamedTensors named_parameters(const torch::nn::Module& module) {
  NamedTensors tensors;
  collect(module, "", /*with_buffers=*/false, tensors);
  return tensors;
}

detail::Pairs detail::match(const NamedTensors& targets, const std::vector<Stored>& stored,
                            const LoadOptions& options, const std::string& source) {
  const std::unordered_set<std::string> optional(options.optional.begin(), options.optional.end());
  std::unordered_map<std::string, size_t> left;
  for (size_t i = 0; i < stored.size(); ++i) left.emplace(stored[i].name, i);

  Pairs pairs;
  Difference difference;
  for (const NamedTensor& target : targets) {
    const auto found = left.find(target.name);
    if (found == left.end()) {
      if (!optional.contains(target.name)) difference.missing.push_back(target.name);
      continue;
    }
    const std::string problem = mismatch(target, stored[found->second]);
    if (!problem.empty()) difference.mismatched.push_back(target.name + problem);
    pairs.emplace_back(&target, found->second);
    left.erase(found);
  }
  for (const Stored& item : stored) {  // in the order of the file
    if (left.contains(item.name) && !optional.contains(item.name)) {
      difference.unexpected.push_back(item.name);
    }
  }
  require(difference.is_empty(), ErrorCode::kInvalidArgument, source,
          ": the tensors are not those of this model: ", difference.text(),
          "; check the model section of the config, or the key that is read");
  return pairs;
}

void detail::copy_row(const NamedTensor& target, const at::Tensor& out, const at::Tensor& row,
                      int64_t begin) {
  const int64_t first = std::max(begin, target.begin);
  const int64_t count = std::min(begin + row.numel(), target.begin + target.tensor.numel()) - first;
  if (count <= 0) return;
  out.narrow(0, first - target.begin, count).copy_(row.narrow(0, first - begin, count));
}

bool detail::may_share(const NamedTensor& target, io::Dtype dtype, const LoadOptions& options) {
  return options.may_share && !target.is_part() && target.tensor.is_cpu() &&
         target.tensor.is_contiguous() && target.tensor.scalar_type() == to_scalar_type(dtype);
}

void load_into(const NamedTensors& targets, const io::StateDict& state,
               const LoadOptions& options) {
  std::vector<detail::Stored> stored;
  for (const auto& [name, array] : state.tensors) {
    stored.push_back({name, array.dtype, array.shape});
  }
  const std::string key = state.key.empty() ? std::string() : str_cat(" ('", state.key, "')");
  const detail::Pairs pairs = detail::match(targets, stored, options, state.source + key);
  const at::NoGradGuard no_grad;
  for (const auto& [target, index] : pairs) {
    const io::Array& array = state.tensors[index].array;
    const at::Tensor values = as_tensor(array);
    if (detail::may_share(*target, array.dtype, options)) {
      target->tensor.set_data(values);
    } else if (target->is_part()) {
      detail::copy_row(*target, target->tensor.detach(), values.view(-1), 0);
    } else {
      replace_weight(target->tensor, [values](const at::Tensor& tensor) { tensor.copy_(values); });
    }
  }
}

void load_into(torch::nn::Module& module, const io::StateDict& state, const LoadOptions& options) {
  load_into(named_state(module), state, options);
}

}  // namespace vgen::checkpoint
