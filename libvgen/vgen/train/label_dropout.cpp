#include "vgen/train/label_dropout.h"

#include <ATen/ATen.h>

#include "vgen/core/random.h"

namespace vgen::train {

at::Tensor drop_labels(const at::Tensor& label_B, const std::vector<int64_t>& index, int64_t step,
                       const LabelDropout& dropout) {
  TORCH_INTERNAL_ASSERT(label_B.numel() == static_cast<int64_t>(index.size()));
  at::Tensor dropped_B = label_B.clone();
  auto* labels = dropped_B.data_ptr<int64_t>();
  for (size_t i = 0; i < index.size(); ++i) {
    Rng rng(dropout.seed, Purpose::kLabelDropout, static_cast<uint64_t>(step),
            static_cast<uint64_t>(index[i]));
    if (rng.uniform() < dropout.prob) labels[i] = dropout.null_class;
  }
  return dropped_B;
}

}  // namespace vgen::train
