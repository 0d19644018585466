#pragma once
// Linear layers, made for few rows, the case of token-by-token decoding, where the time is
// that of reading the weights. They are packed once into the order in which they are read.
// M rows, K input features, N output features.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "vgen/kernels/aligned_buffer.h"
#include "vgen/kernels/decode_kernels.h"

namespace vgen::kernels {

/// Memory for PackedLinear::forward, owned by who calls it: one per thread. It grows to the largest
/// call and stays, so a step that was taken before allocates nothing.
class LinearScratch {
 public:
  /// `size` floats of any value, valid until the next call.
  float* reserve(int64_t size);

 private:
  AlignedBuffer buffer_;
};

/// What AMX, which multiplies bfloat16 only, makes of x.
enum class Inputs {
  kWhole,    ///< the sum of two bfloat16: x to 17 bits
  kRounded,  ///< bfloat16, as LibTorch's autocast does: half the multiplications
};

/// y = x W^T. The sum of an output runs over K in order, whatever M, N and the number of threads
/// are, so a row's result does not depend on the rows beside it. Products are in float32, but for
/// bfloat16 weights with AMX: see Inputs.
class PackedLinear {
 public:
  PackedLinear() = default;

  /// weights_NK: float32, bfloat16 or float16 on the CPU, stacked along N; K even and equal. They
  /// are read once and not kept. kInt8 rounds each output's weights to 255 steps of its own scale,
  /// max |w| / 127. Runs on LibTorch's threads. Throws Error(kInvalidArgument).
  PackedLinear(const std::vector<at::Tensor>& weights_NK, Storage storage, CpuIsa isa,
               Inputs inputs = Inputs::kWhole);

  /// silu(x w1^T) * (x w3^T) in one pass; w1 and w3 have one shape.
  static PackedLinear swiglu(const at::Tensor& w1_NK, const at::Tensor& w3_NK, Storage storage,
                             CpuIsa isa);

  /// bias_N: float32, added by each forward but those with kAdd. Not for swiglu().
  void set_bias(const at::Tensor& bias_N);

  /// y_MN = x_MK W^T + bias, or what else `epilogue` says; `gate` is for kAddGated. Runs on
  /// LibTorch's threads; the scratch is all that it may allocate. May be called from several
  /// threads, each with a scratch of its own.
  void forward(const float* x_MK, int64_t num_rows, float* y_MN, LinearScratch& scratch,
               Epilogue epilogue = Epilogue::kStore, const Gate& gate = {}) const;

  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }
  /// What one forward reads: the yardstick of its speed.
  size_t size_bytes() const { return buffer_.size(); }

 private:
  const float* chunked(const float* x_MK, int64_t num_rows, LinearScratch& scratch) const;
  const std::byte* tiled(const float* x_MK, int64_t num_rows, int64_t num_parts,
                         LinearScratch& scratch) const;
  bool has_tiles() const { return storage_ == Storage::kBFloat16 && kernels_->tiles != nullptr; }
  void pack(const std::vector<const at::Tensor*>& row_source,
            const std::vector<int64_t>& row_index);

  AlignedBuffer buffer_;
  std::vector<float> scale_;  // kInt8
  std::vector<float> bias_;   // of all rows of all blocks; empty: none
  int64_t in_features_ = 0, out_features_ = 0, num_blocks_ = 0;
  int64_t packed_inputs_ = 0;  // in_features_, with tiles rounded up to whole ones by zeros
  Storage storage_ = Storage::kFloat32;
  Inputs inputs_ = Inputs::kWhole;
  bool is_swiglu_ = false;
  const DecodeKernels* kernels_ = nullptr;
};

}  // namespace vgen::kernels
