#include "vgen/tensor/deferred_init.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <mutex>

namespace vgen {

namespace {

thread_local DeferredInit* deferred_of_thread = nullptr;

at::Tensor without_memory(const at::Tensor& like, c10::Device device) {
  const at::Tensor tensor = at::empty({0}, like.options().device(device).requires_grad(false));
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(like.sizes());
  return tensor;
}

at::Tensor state_now() {
  at::Generator random = at::globalContext().defaultGenerator(c10::kCPU);
  const std::lock_guard lock(random.mutex());
  return random.get_state();
}

}  // namespace

DeferredInit::DeferredInit() {
  TORCH_INTERNAL_ASSERT(deferred_of_thread == nullptr);
  deferred_of_thread = this;
}

DeferredInit::~DeferredInit() { deferred_of_thread = nullptr; }

DeferredInit::Weight* DeferredInit::find(const at::Tensor& weight) {
  if (deferred_of_thread == nullptr) return nullptr;
  auto& weights = deferred_of_thread->weights_;
  const auto found = weights.find(weight.unsafeGetTensorImpl());
  return found == weights.end() ? nullptr : &found->second;
}

void defer_weight(const at::Tensor& weight) {
  if (deferred_of_thread == nullptr || !weight.is_cpu()) return;
  weight.set_data(without_memory(weight, weight.device()));
  deferred_of_thread->weights_[weight.unsafeGetTensorImpl()] = {weight, {}};
}

void draw_weight(const at::Tensor& weight, const Draw& draw) {
  const at::NoGradGuard no_grad;
  DeferredInit::Weight* deferred = DeferredInit::find(weight);
  if (deferred == nullptr) return draw(weight, std::nullopt);
  deferred->steps.push_back({state_now(), draw, {}});
  draw(at::empty(weight.sizes(), weight.options().requires_grad(false)), std::nullopt);
}

void change_weight(const at::Tensor& weight, const Change& change) {
  const at::NoGradGuard no_grad;
  DeferredInit::Weight* deferred = DeferredInit::find(weight);
  if (deferred == nullptr) return change(weight);
  deferred->steps.push_back({{}, {}, change});
}

void replace_weight(const at::Tensor& weight, const Change& fill) {
  if (DeferredInit::Weight* deferred = DeferredInit::find(weight)) deferred->steps.clear();
  change_weight(weight, fill);
}

void copy_weight(const at::Tensor& weight, const at::Tensor& out) {
  const at::NoGradGuard no_grad;
  const DeferredInit::Weight* deferred = DeferredInit::find(weight);
  if (deferred == nullptr) {
    out.copy_(weight);
    return;
  }
  // Drawn on the CPU, as it would have been.
  const at::Tensor values =
      out.is_cpu() ? out : at::empty(out.sizes(), out.options().device(c10::kCPU));
  for (const auto& [random, draw, change] : deferred->steps) {
    if (!random.defined()) {
      change(values);
      continue;
    }
    at::Generator generator = at::detail::createCPUGenerator();
    {
      const std::lock_guard lock(generator.mutex());
      generator.set_state(random);
    }
    draw(values, generator);
  }
  if (!out.is_cpu()) out.copy_(values);
}

void move_to(torch::nn::Module& module, c10::Device device) {
  for (const at::Tensor& weight : module.parameters()) {
    if (DeferredInit::find(weight) == nullptr || weight.device() == device) continue;
    weight.set_data(without_memory(weight, device));
  }
  module.to(device);
}

}  // namespace vgen
