#pragma once
// Matrix products in narrow dtypes.
//
// Those that a processor has no fast instructions for: there LibTorch's products of bfloat16 and
// float16 take two (AVX512_BF16 of Intel's without AMX), five (AVX-512) to tens of times (AVX2) as
// long as those of float32. Here they are made in float32 and rounded once. Activations that are
// kept for the backward pass are narrow; float32 weights are multiplied and kept as they are, not
// rounded before.
//
// Those of autocast on CUDA that have gradients: one operator instead of six, whose gradient to a
// float32 weight leaves the product in float32, without being rounded in between.
//
// There is no second derivative in both. Everywhere else these are LibTorch's operators.

#include <ATen/core/Tensor.h>

#include <optional>

namespace vgen::nn {

/// Whether LibTorch multiplies matrices of that dtype on this processor at least as fast as those
/// of float32.
bool has_fast_products(c10::ScalarType dtype);

/// x W^T + b, as at::linear, autocast included: x (..., K), weight (N, K), bias (N) or undefined.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

/// As at::scaled_dot_product_attention.
struct AttentionOptions {
  at::Tensor mask = {};
  double dropout_p = 0;
  bool is_causal = false;
  std::optional<double> scale = {};  ///< none: D^-0.5
  bool has_groups = false;           ///< fewer heads of keys and values than of queries
};
/// query (B, H, Q, D), key and value (B, K, T, D) to (B, H, Q, D). Autocast is followed. With
/// dropout it is LibTorch's in any case. The mask gets no gradient.
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const AttentionOptions& options);

}  // namespace vgen::nn
