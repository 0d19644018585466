#include "vgen/dist/detail/unit.h"

#include <c10/core/DeviceGuard.h>
#include <torch/torch.h>

#include <algorithm>

#include "vgen/tensor/deferred_init.h"

namespace vgen::dist::detail {

namespace {

void add_to(at::Tensor& sum, const at::Tensor& value) {
  if (sum.defined()) {
    sum.add_(value);
  } else {
    sum = value;
  }
}

int64_t bytes_of(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<int64_t>(tensor.nbytes()) : 0;
}

}  // namespace

void RowBytes::add(int64_t bytes) {
  now += bytes;
  peak = std::max(peak, now);
}

Unit::Unit(const Spread& spread, RowBytes& row_bytes, const std::vector<std::string>& names,
           std::vector<at::Tensor> parameters)
    : spread_(spread),
      row_bytes_(row_bytes),
      parameters_(std::move(parameters)),
      is_used_(parameters_.size()) {
  const at::NoGradGuard no_grad;
  lay_out();
  const auto options = parameters_[0].options().dtype(at::kFloat).requires_grad(false);
  const at::Tensor whole = at::zeros({part_size_ * spread_.copy->size()}, options);
  for (size_t i = 0; i < parameters_.size() && spread_.world->rank() == 0; ++i) {
    copy_weight(parameters_[i], slice(whole, i));
  }
  spread_.world->broadcast(whole);
  row_ = spread_.is_resident ? whole : row_without_memory(whole);
  weights_ = spread_.is_resident ? own(whole) : own(whole).clone();
  for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i].set_data(slice(row_, i));
  is_gathered_ = spread_.is_resident;
  if (!spread_.is_resident) row_.storage().unsafeGetStorageImpl()->reset();
  make_parts(names);
}

void Unit::lay_out() {
  int64_t size = 0;
  for (const at::Tensor& parameter : parameters_) {
    offsets_.push_back(size);
    size += aligned(parameter.numel());
  }
  part_size_ = part_size(size, spread_.copy->size());
}

void Unit::make_parts(const std::vector<std::string>& names) {
  const int64_t own_begin = spread_.copy->rank() * part_size_;
  const auto within = [&](int64_t place) { return std::clamp<int64_t>(place, 0, part_size_); };
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const int64_t begin = within(offsets_[i] - own_begin);
    const int64_t end = within(offsets_[i] + parameters_[i].numel() - own_begin);
    part_offsets_.push_back(begin);
    // Not a view to autograd: a leaf with a version counter of its own.
    const at::Tensor values = weights_.narrow(0, begin, end - begin).variable_data();
    parts_.push_back({.name = names[i],
                      .sizes = parameters_[i].sizes().vec(),
                      .begin = end > begin ? own_begin + begin - offsets_[i] : 0,
                      .values = values.set_requires_grad(true)});
  }
}

at::Tensor Unit::own(const at::Tensor& row) const {
  return row.narrow(0, spread_.copy->rank() * part_size_, part_size_);
}

at::Tensor Unit::slice(const at::Tensor& row, size_t i) const {
  return row.narrow(0, offsets_[i], parameters_[i].numel()).view(parameters_[i].sizes());
}

// Says that it has memory until reset(), so that views of it can be made.
at::Tensor Unit::row_without_memory(const at::Tensor& like) const {
  const at::Tensor row = at::empty({0}, like.options().dtype(spread_.param_dtype));
  const auto bytes = static_cast<size_t>(like.numel()) * row.itemsize();
  row.storage().unsafeGetStorageImpl()->set_nbytes(bytes);
  row.unsafeGetTensorImpl()->set_sizes_contiguous(like.sizes());
  return row;
}

void Unit::take_memory() {
  c10::StorageImpl& storage = *row_.storage().unsafeGetStorageImpl();
  if (storage.nbytes() > 0) return;
  const c10::DeviceGuard device(row_.device());
  const auto bytes = static_cast<size_t>(row_.numel()) * row_.itemsize();
  storage.set_data_ptr_noswap(storage.allocator()->allocate(bytes));
  storage.set_nbytes(bytes);
  row_bytes_.add(static_cast<int64_t>(bytes));
}

void Unit::give_memory_back() {
  c10::StorageImpl& storage = *row_.storage().unsafeGetStorageImpl();
  row_bytes_.add(-static_cast<int64_t>(storage.nbytes()));
  storage.reset();
}

void Unit::start_gather() {
  if (is_gathered_) return;
  is_gathered_ = true;
  if (!spread_.is_resident) {
    take_memory();
    own(row_).copy_(weights_);
  }
  gather_ = spread_.copy->start_all_gather(row_, own(row_));
}

void Unit::free() {
  if (spread_.is_resident || pins_ > 0 || !is_gathered_) return;
  wait();
  is_gathered_ = false;
  give_memory_back();
}

void Unit::unpin() {
  if (--pins_ == 0) free();
}

void Unit::take_over() {
  if (spread_.is_resident) return;  // the part is the row's memory
  TORCH_INTERNAL_ASSERT(is_gathered_ && spread_.param_dtype == c10::kFloat);
  const at::NoGradGuard no_grad;
  wait();
  weights_.copy_(own(row_));
}

void Unit::mark_changed() {
  wait();
  for (const at::Tensor& parameter : parameters_) {
    parameter.unsafeGetTensorImpl()->bump_version();
  }
  if (spread_.is_resident || pins_ > 0) {
    is_gathered_ = false;
    start_gather();
  } else {
    free();
  }
  if (pins_ > 0) wait();
}

bool Unit::has_gradients() const {
  return std::ranges::any_of(parameters_, [](const at::Tensor& p) { return p.grad().defined(); });
}

Reduction Unit::start_scatter(bool is_last) {
  const at::NoGradGuard no_grad;
  Reduction reduction{.unit = this, .is_last = is_last};
  reduction.given = at::zeros({part_size_ * spread_.copy->size()},
                              weights_.options().dtype(spread_.reduce_dtype));
  row_bytes_.add(bytes_of(reduction.given));
  std::vector<at::Tensor> targets, gradients;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    at::Tensor& gradient = parameters_[i].mutable_grad();
    if (!gradient.defined()) continue;
    is_used_[i] = 1;
    targets.push_back(slice(reduction.given, i));
    gradients.push_back(std::move(gradient));
    gradient = at::Tensor();
  }
  if (!targets.empty()) at::_foreach_copy_(targets, gradients);
  reduction.sum = at::empty({part_size_}, reduction.given.options());
  reduction.pending = spread_.copy->start_reduce_scatter_sum(reduction.sum, reduction.given);
  return reduction;
}

void Unit::finish_scatter(Reduction reduction) {
  const at::NoGradGuard no_grad;
  timed_wait(reduction.pending, spread_.waits);
  row_bytes_.add(-bytes_of(reduction.given));
  // After the sum, in float32: bf16 has room for the sum, and a division of its own would round.
  add_to(kept_, reduction.sum.to(at::kFloat).div_(static_cast<double>(spread_.world->size())));
}

Reduction Unit::start_sum_over_peers() {
  const bool is_alone = spread_.peers->size() == 1;
  Reduction reduction{.unit = this};
  reduction.sum = kept_.to(is_alone ? at::kFloat : spread_.reduce_dtype);
  reduction.pending = spread_.peers->start_all_reduce_sum(reduction.sum);
  kept_ = at::Tensor();
  return reduction;
}

void Unit::finish_sum_over_peers(Reduction reduction) {
  const at::NoGradGuard no_grad;
  timed_wait(reduction.pending, spread_.waits);
  add_to(gradient_, reduction.sum.to(at::kFloat));
}

void Unit::publish_gradients(const int32_t* is_used) {
  for (size_t i = 0; i < parts_.size(); ++i) {
    const at::Tensor& values = parts_[i].values;
    at::Tensor gradient;
    if (is_used[i] != 0) {
      gradient = gradient_.narrow(0, part_offsets_[i], values.numel()).variable_data();
    }
    values.mutable_grad() = gradient;
  }
}

void Unit::drop_gradients() {
  kept_ = gradient_ = at::Tensor();
  std::ranges::fill(is_used_, 0);
  for (const ParameterPart& part : parts_) part.values.mutable_grad() = at::Tensor();
}

int64_t Unit::weight_bytes() const { return bytes_of(spread_.is_resident ? row_ : weights_); }

int64_t Unit::gradient_bytes() const { return bytes_of(kept_) + bytes_of(gradient_); }

}  // namespace vgen::dist::detail
