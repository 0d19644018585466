#include "vgen/checkpoint/load.h"

#include <torch/torch.h>

#include "vgen/checkpoint/detail/index.h"
#include "vgen/checkpoint/detail/match.h"
#include "vgen/io/shards.h"

namespace vgen::checkpoint {

namespace {

// What the index lists, and nothing else that may lie in the folder.
io::SlicedFile open_file(const CheckpointInfo& checkpoint, const std::string& file) {
  const std::string path = str_cat(checkpoint.path, "/", file);
  try {
    detail::Index index = detail::read_index(checkpoint.path);
    const auto sliced = index.tensors.find(file);
    if (sliced != index.tensors.end()) return {path, std::move(sliced->second)};
    const io::Json* entry = index.files.find(file);
    require(entry != nullptr, ErrorCode::kNotFound, "holds no ", file);
    detail::check_file(checkpoint.path, file, *entry, /*with_checksum=*/false);
    return io::SlicedFile(path);
  } catch (Error& error) {
    error.add_context(checkpoint.path);
    throw;
  }
}

void fill(const NamedTensor& target, io::SlicedFile& file, const io::SlicedTensor& tensor) {
  const bool is_row = target.tensor.is_contiguous();
  const at::Tensor out = is_row ? target.tensor.detach().view(-1)
                                : at::empty({target.tensor.numel()}, target.tensor.scalar_type());
  const int64_t end = target.begin + target.tensor.numel();
  for (const io::Slice& slice : tensor.slices) {
    if (slice.end() <= target.begin || slice.begin >= end) continue;
    detail::copy_row(target, out, as_tensor(file.row(tensor, slice)), slice.begin);
  }
  if (!is_row) target.tensor.detach().copy_(out.view(target.tensor.sizes()));
}

}  // namespace

void load_file(const CheckpointInfo& checkpoint, const std::string& file,
               const NamedTensors& targets, const LoadOptions& options) {
  io::SlicedFile source = open_file(checkpoint, file);
  std::vector<detail::Stored> stored;
  for (const io::SlicedTensor& tensor : source.tensors()) {
    stored.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  const detail::Pairs pairs = detail::match(targets, stored, options, source.path());
  const at::NoGradGuard no_grad;
  for (const auto& [target, index] : pairs) {
    const io::SlicedTensor& tensor = source.tensors()[index];
    if (detail::may_share(*target, tensor.dtype, options)) {
      target->tensor.set_data(as_tensor(source.whole(tensor)));
    } else {
      fill(*target, source, tensor);
    }
  }
}

}  // namespace vgen::checkpoint
