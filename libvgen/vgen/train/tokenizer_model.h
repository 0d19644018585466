#pragma once
// What the tokenizer task knows of the model that it trains: an image autoencoder with codes.
// B batch, H height, W width.

#include <torch/torch.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "vgen/io/state_dict.h"
#include "vgen/nn/batch_ranks.h"
#include "vgen/tokenizer/quantizer.h"
#include "vgen/tokenizer/vqgan.h"
#include "vgen/train/tokenizer_cost.h"

namespace vgen::train {

class TokenizerModel {
 public:
  virtual ~TokenizerModel() = default;

  virtual torch::nn::Module& module() = 0;
  virtual TokenizerShape shape() const = 0;
  /// kFloat32, kBFloat16 or kHalf.
  virtual void set_compute_dtype(torch::ScalarType dtype) = 0;
  /// Who shares the batches: all of them are measured and, where it counts, learnt from as one.
  /// Then what follows is collective but for reconstruct(). Borrows; null: this process has all.
  virtual void set_ranks(nn::BatchRanks* ranks) = 0;
  /// Modules that run through run_block(), in their order.
  virtual std::vector<std::shared_ptr<torch::nn::Module>> blocks() const = 0;
  /// The decoder's last weight, in no block, for the adaptive weight of the discriminator.
  virtual const torch::Tensor& last_weight() const = 0;

  struct Output {
    torch::Tensor image_B3HW;           ///< reconstruction with its graph, float32, not clamped
    tokenizer::QuantizerLosses losses;  ///< what is undefined counts as zero
    /// More figures for the metrics: detached scalars, the same names in every step.
    std::vector<std::pair<std::string, torch::Tensor>> terms;
    bool has_moved_codes = false;  ///< wrote to the codebook, which is in no block
  };
  /// The training forward. image_B3HW: float32 in [-1, 1]. `step` counts from 1.
  virtual Output train_forward(const torch::Tensor& image_B3HW, int64_t step,
                               size_t micro_batch) = 0;

  /// The reconstruction alone, float32, not clamped. Call in eval mode, without grad mode.
  virtual torch::Tensor reconstruct(const torch::Tensor& image_B3HW) = 0;
  /// num_batches: how many measure() will be given, about; the same on all ranks.
  virtual void begin_validation(int64_t num_batches) = 0;
  /// reconstruct(), and what code_metrics() tells of the images, where they count. Every rank calls
  /// it as often.
  virtual torch::Tensor measure(const torch::Tensor& image_B3HW, bool counts) = 0;
  /// Metrics of what all ranks measured since begin_validation(), by name.
  virtual std::map<std::string, double> code_metrics() const = 0;

  /// Puts the weights of a checkpoint in place; buffers that only count may differ or be missing.
  /// Throws Error(kInvalidArgument).
  virtual void load(io::StateDict state) = 0;
};

/// LlamaGen's tokenizer. code_metrics(): codebook_usage, the share of all codes that the images
/// use.
std::unique_ptr<TokenizerModel> make_vqgan_model(const tokenizer::VqganConfig& config);

}  // namespace vgen::train
