#pragma once
// A transformer and a tokenizer that fit together, and the drawing of batches: the one place that
// knows which kind of model it is.

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
  /// the codebook, scales that are not the tokenizer's, weights of another model; of a GPT also
  /// another grid or other pixels per code than its files tell, unless config.any_size.
  explicit SampleSession(const SampleConfig& config);
  ~SampleSession();

  struct Image {
    uint64_t index = 0;  ///< its number
    int64_t label = 0;
    at::Tensor given_L = {};    ///< VAR: codes to keep, as infer::VarRequest
    at::Tensor is_kept_L = {};  ///< VAR
    int64_t num_given = 0;      ///< GPT: so many codes of given_L are kept, in raster order
  };
  struct Batch {
    at::Tensor code;                           ///< int64 (B, code_shape()...)
    at::Tensor image_B3HW;                     ///< float32, not clamped, on the CPU
    std::vector<at::Tensor> scales_B3HW = {};  ///< the same after each scale, where asked for
  };
  /// `on_tokens`: called with the number of tokens that each step made. keep_scales: VAR alone,
  /// Error(kInvalidArgument) for another.
  Batch draw(const std::vector<Image>& images, const std::function<void(int64_t)>& on_tokens,
             bool keep_scales = false);

  int64_t batch_size() const { return config_.batch_size; }
  int64_t num_classes() const;
  int64_t num_tokens() const;               ///< of an image
  std::vector<int64_t> code_shape() const;  ///< {h, w}, or {L} for VAR
  int64_t image_size() const { return image_size_; }
  bool is_var() const;
  const infer::ImageTokenizer& tokenizer() const { return *tokenizer_.model; }
  std::string description() const;
  /// settings_json with the defaults of this kind of model.
  io::Json settings() const;
  /// Times so far; `images` and `seconds` are the caller's.
  const SampleResult& times() const { return times_; }

  /// One kind of model; in the source.
  class Drawer;

 private:
  SampleConfig config_;
  infer::LoadedTokenizer tokenizer_;
  std::unique_ptr<Drawer> drawer_;
  int64_t image_size_ = 0;
  SampleResult times_;
};

}  // namespace vgen::eval
