#include "vgen/checkpoint/detail/host_copy.h"

#include <torch/torch.h>

namespace vgen::checkpoint::detail {

namespace {

constexpr int64_t kAlignment = 64;

int64_t padded_bytes(const at::Tensor& tensor) {
  return (static_cast<int64_t>(tensor.nbytes()) + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

std::vector<TensorFile> HostCopy::copy(const std::vector<TensorFile>& files) {
  int64_t size = 0;
  bool is_cuda = false;
  for (const TensorFile& file : files) {
    for (const NamedTensor& item : file.tensors) {
      size += padded_bytes(item.tensor);
      is_cuda = is_cuda || item.tensor.is_cuda();
    }
  }
  if (!buffer_.defined() || buffer_.numel() < size) {
    buffer_ = at::Tensor();  // before the new one is there
    buffer_ = at::empty({size}, at::TensorOptions().dtype(at::kByte).pinned_memory(is_cuda));
  }
  const at::NoGradGuard no_grad;
  std::vector<TensorFile> copies = files;
  int64_t offset = 0;
  for (TensorFile& file : copies) {
    for (NamedTensor& item : file.tensors) {
      const auto bytes = buffer_.narrow(0, offset, static_cast<int64_t>(item.tensor.nbytes()));
      offset += padded_bytes(item.tensor);
      const at::Tensor values = bytes.view(item.tensor.scalar_type()).view(item.tensor.sizes());
      item.tensor = values.copy_(item.tensor.detach());
    }
  }
  return copies;
}

}  // namespace vgen::checkpoint::detail
