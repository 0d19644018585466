#pragma once
// A GPT and a tokenizer that fit together, and the drawing of batches.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "vgen/eval/sample.h"

namespace vgen::eval {

/// Not thread-safe.
class SampleSession {
 public:
  /// Loads both. Throws Error(kInvalidArgument): settings out of range, a vocabulary that is not
  /// the codebook, weights of another model.
  explicit SampleSession(const SampleConfig& config);

  struct Image {
    uint64_t index = 0;  ///< its number
    int64_t label = 0;
  };
  struct Batch {
    at::Tensor code_BN;     ///< int64
    at::Tensor image_B3HW;  ///< float32, not clamped, on the CPU
  };
  /// `on_tokens`: called with the number of tokens that each step made.
  Batch draw(const std::vector<Image>& images, const std::function<void(int64_t)>& on_tokens);

  int64_t batch_size() const { return config_.batch_size; }
  int64_t num_classes() const { return engine_->config().num_classes; }
  int64_t num_tokens() const { return engine_->config().block_size; }
  int64_t grid_size() const { return engine_->config().grid_size(); }
  int64_t image_size() const { return image_size_; }
  std::string description() const { return engine_->description(); }
  /// Times so far; `images` and `seconds` are the caller's.
  const SampleResult& times() const { return times_; }

 private:
  SampleConfig config_;
  std::unique_ptr<infer::GptEngine> engine_;
  infer::LoadedTokenizer tokenizer_;
  int64_t image_size_ = 0;
  SampleResult times_;
};

}  // namespace vgen::eval
