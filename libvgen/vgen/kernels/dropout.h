#pragma once
// Dropout (arXiv:1207.0580) on the CPU, all threads and vectors of it, without a mask: what is
// dropped follows from a key, so that the backward pass draws it again. No autograd here:
// nn/dropout.h has it. May be called from several threads.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// Whether x is on the CPU, float32 or bfloat16.
bool is_dropout_input(const at::Tensor& x);

/// x / (1 - p), or 0 with probability p, 0 <= p < 1; shape and dtype of x, contiguous. Depends on
/// the key and each element's index alone: the gradient is keyed_dropout(dy, p, key). The words
/// are those of Philox4x32-10 (core/random.h): of 64 elements from 64 s on, element 16 w + l is
/// dropped where word w of counter 16 s + l is below floor(p 2^32).
/// What is dropped is 0 also where x is not finite.
at::Tensor keyed_dropout(const at::Tensor& x, double p, uint64_t key, CpuIsa isa = best_cpu_isa());

}  // namespace vgen::kernels
