#pragma once
// Labels dropped in training, so that a model also learns what images look like without one
// (classifier-free guidance, arXiv:2207.12598).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace vgen::train {

struct LabelDropout {
  double prob = 0;
  int64_t null_class = 0;  ///< what a dropped label becomes
  uint64_t seed = 0;
};

/// A copy of label_B (int64, CPU) in which sample i is dropped by Rng(seed,
/// Purpose::kLabelDropout, step, index[i]): whatever the batch or the rank. `index`: of each sample
/// in the dataset.
at::Tensor drop_labels(const at::Tensor& label_B, const std::vector<int64_t>& index, int64_t step,
                       const LabelDropout& dropout);

}  // namespace vgen::train
