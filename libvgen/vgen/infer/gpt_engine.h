#pragma once
// LlamaGen's transformer for inference: packed weights, a key-value cache per sequence slot, steps
// over any mixture of slots. One engine serves sampling, the FID protocol and a server.
// V vocabulary.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "vgen/infer/gpt_weights.h"
#include "vgen/kernels/cpu_isa.h"
#include "vgen/kernels/sample_token.h"

namespace vgen::infer {

struct GptEngineOptions {
  /// What weights are stored in: fp32, bf16, int8 (weights alone, a scale per output). Activations
  /// are float32 on the CPU; keys and values float32 with fp32, else bfloat16. On other devices
  /// all is float32 or bfloat16, and int8 is not there.
  std::string precision = "fp32";
  int64_t num_slots = 2;                          ///< sequences at a time; a guided image takes two
  std::string device = "cpu";                     ///< as parse_device
  kernels::CpuIsa isa = kernels::best_cpu_isa();  ///< highest instruction level used
  /// false: LibTorch's operators on the CPU too, as on other devices.
  bool use_own_kernels = true;
};

/// Starts a sequence in a slot; whatever was there is forgotten.
struct GptPrompt {
  int64_t slot = 0;
  bool is_null = false;     ///< the condition that stands for none: the other half of guidance
  int64_t label = 0;        ///< c2i, 0..num_classes-1
  at::Tensor caption = {};  ///< t2i: float32 (cls_token_num, caption_dim)
  int64_t num_padding = 0;  ///< t2i: leading rows of the caption that nothing attends to
};

/// The next token of a slot.
struct GptStep {
  int64_t slot = 0;
  int64_t token = 0;
};

/// How one token is chosen from the rows of the last logits.
struct GptChoice {
  int64_t row = 0;        ///< logits given the condition
  int64_t null_row = -1;  ///< logits without it; -1 = no guidance
  double cfg_scale = 1;
  kernels::TokenFilter filter = {};
  uint64_t seed = 0;   ///< the draw depends on seed, image and index alone
  uint64_t image = 0;  ///< number of the image
  int64_t index = 0;   ///< number of the token within it
};

/// Not thread-safe: one thread drives it. With our own kernels equal inputs give equal logits to
/// the last bit, whatever else is in the batch and however many threads run; LibTorch's operators
/// round differently in batches of other sizes.
///
/// With our own kernels decode() and sample() make no tensors once they were called with as many
/// rows on as many threads. LibTorch's operators make new tensors in both, except where a decode()
/// replays a CUDA graph; sampling is not part of the graph.
class GptEngine {
 public:
  virtual ~GptEngine() = default;

  /// Runs the conditions of `prompts` (different slots). Returns logits (rows, V), float32; row i
  /// is what the first token of prompts[i] is chosen from; valid until the next call. Rows beyond
  /// the prompts are of no meaning. Throws Error(kInvalidArgument) for a slot, label or caption
  /// that does not fit.
  virtual const at::Tensor& prefill(std::span<const GptPrompt> prompts) = 0;

  /// Feeds one token to each slot (different slots, at any positions). Returns logits as prefill.
  /// Throws Error(kInvalidArgument) for a token, a slot that was not started or one that is full.
  virtual const at::Tensor& decode(std::span<const GptStep> steps) = 0;

  /// Chooses tokens from the last logits: tokens[i] for choices[i]. Throws Error(kDataCorrupt) when
  /// the logits are not finite.
  virtual void sample(std::span<const GptChoice> choices, std::span<int64_t> tokens) = 0;

  /// Tokens fed to a slot since its prompt; -1 before one.
  virtual int64_t length(int64_t slot) const = 0;

  virtual const gpt::GptConfig& config() const = 0;
  virtual int64_t num_slots() const = 0;
  /// Bytes of weights that every step reads.
  virtual int64_t weight_bytes() const = 0;
  /// "cpu, avx2, bf16 weights", "cuda:0, CUDA graphs, bf16".
  virtual std::string description() const = 0;
};

/// Packs the weights, letting go of each as it is packed (move them in and there is never a second
/// copy of all); a CPU engine keeps the embeddings where they are. Throws Error(kInvalidArgument,
/// kUnavailable).
std::unique_ptr<GptEngine> make_gpt_engine(GptWeights weights,
                                           const GptEngineOptions& options = {});

}  // namespace vgen::infer
