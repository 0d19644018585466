#pragma once
// What follows the sums of a block of outputs: scale, bias, epilogue. See decode_vectors.h.
#include "vgen/kernels/detail/decode_vectors.h"

namespace vgen::kernels {
namespace {

constexpr int kBlock = static_cast<int>(kLinearBlock);

inline void finish_swiglu(const LinearArgs& args, int64_t block, int64_t row, const float* tile) {
  constexpr int kHalf = kBlock / 2;
  float* y = args.y + row * args.num_outputs + block * kHalf;
  float out[kHalf];
  for (int i = 0; i < kHalf; i += kWidth) {
    const Floats gate = load<Floats>(tile + i), up = load<Floats>(tile + kHalf + i);
    store(out + i, gate / (exponential(-gate) + 1.0f) * up);
  }
  const int64_t count = args.num_outputs - block * kHalf;
  for (int i = 0; i < (count < kHalf ? count : kHalf); ++i) y[i] = out[i];
}

// x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3) is 0.5 x (1 + tanh(u)).
inline Floats gelu(Floats x) {
  const Floats u = x * (x * x * 0.044715f + 1.0f) * 0.797884561f;
  return x / (exponential(u * -2.0f) + 1.0f);
}

// Of one row of the block: y (count) from its sums.
inline void finish_row(const LinearArgs& args, int64_t block, int64_t index, float* row) {
  float* y = args.y + index * args.num_outputs + block * kBlock;
  const int64_t left = args.num_outputs - block * kBlock;
  const int count = left < kBlock ? static_cast<int>(left) : kBlock;
  switch (args.epilogue) {
    case Epilogue::kAdd:
      for (int i = 0; i < count; ++i) y[i] += row[i];
      return;
    case Epilogue::kAddGated: {
      const float* gate =
          args.gate.values + index / args.gate.rows * args.gate.stride + block * kBlock;
      for (int i = 0; i < count; ++i) y[i] += gate[i] * row[i];
      return;
    }
    case Epilogue::kGelu:
      for (int i = 0; i < kBlock; i += kWidth) store(row + i, gelu(load<Floats>(row + i)));
      [[fallthrough]];
    default:
      for (int i = 0; i < count; ++i) y[i] = row[i];
  }
}

inline void finish_block(const LinearArgs& args, int64_t block, int64_t first_row, int64_t num_rows,
                         float* tile) {
  for (int64_t r = 0; r < num_rows; ++r) {
    float* row = tile + r * kBlock;
    if (args.scale != nullptr) {
      for (int i = 0; i < kBlock; ++i) row[i] *= args.scale[block * kBlock + i];
    }
    if (args.bias != nullptr) {
      for (int i = 0; i < kBlock; ++i) row[i] += args.bias[block * kBlock + i];
    }
    if (args.epilogue == Epilogue::kSwiGlu) {
      finish_swiglu(args, block, first_row + r, row);
    } else {
      finish_row(args, block, first_row + r, row);
    }
  }
}

}  // namespace
}  // namespace vgen::kernels
