#include "vgen/train/plan_activations.h"

#include <algorithm>

namespace vgen::train {

namespace {

constexpr int64_t kFloatBytes = 4;

}  // namespace

int64_t Activations::kept(bool is_checkpointed) const {
  int64_t bytes = before + head;
  for (const Block& block : blocks) bytes += is_checkpointed ? block.input : block.kept;
  return bytes;
}

int64_t Activations::peak(bool is_checkpointed) const {
  int64_t in_block = 0;
  if (!blocks.empty()) {
    const Block& last = blocks.back();
    in_block = last.working + (is_checkpointed ? last.kept - last.input + last.held : 0);
  }
  return kept(is_checkpointed) - head + std::max(head + extra, in_block);
}

int64_t Activations::peak_with(const dist::PassMemory& pass, bool is_checkpointed) const {
  int64_t most = std::max(kept(is_checkpointed) + extra + pass.begin, pass.end);
  if (blocks.empty()) return std::max(most, peak(is_checkpointed) + pass.end);
  int64_t left = before;  // of what was kept, while block i computes
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Block& block = blocks[i];
    const int64_t held = is_checkpointed ? block.held : 0;
    most = std::max(most, left + block.kept + block.working + held + pass.blocks.at(i));
    left += is_checkpointed ? block.input : block.kept;
  }
  return most;
}

Activations gpt_activations(const gpt::GptConfig& config, const ActivationSetup& setup) {
  const int64_t dim = config.dim, ffn = config.ffn_dim(), vocab = config.vocab_size;
  const int64_t key_dim = config.num_kv_heads() * config.head_dim();
  const int64_t num_codes = setup.batch * config.block_size;
  const int64_t tokens = setup.batch * (config.block_size + config.cls_token_num - 1);
  const int64_t e = setup.compute_bytes;
  const int64_t s = kFloatBytes;  // embeddings are float32, and sums with them stay so
  // On CUDA a mask of bool; on the CPU none in float32 and bfloat16.
  const auto dropout = [&](double p) { return p == 0 || setup.is_cpu ? 0 : dim; };
  const int64_t norm = s * dim + 4;  // its input, and 1 / sqrt(mean square)
  // Turned, one tensor; where CUDA's kernel does not serve, the values stay in their own.
  const bool is_one_pass = setup.is_cpu || config.head_dim() % 8 == 0;
  const int64_t heads = e * (dim + 2 * key_dim) + (is_one_pass ? 0 : e * (dim + key_dim));
  const int64_t attention = norm + e * dim + heads + e * dim +
                            (setup.is_widened ? 0 : kFloatBytes * config.n_head) +  // its sums
                            dropout(config.resid_dropout_p);
  const int64_t feed_forward = norm + e * dim + 3 * e * ffn + dropout(config.ffn_dropout_p);
  const int64_t block_weights = (dim + 2 * key_dim) * dim + dim * dim + 3 * dim * ffn;

  Activations result;
  // Gradients of the FFN's products, and of the hidden states on both sides of a sum.
  Activations::Block block{.kept = tokens * (attention + feed_forward),
                           .input = tokens * s * dim,
                           .working = tokens * (2 * e * ffn + 2 * s * dim)};
  if (setup.is_casting_blocks()) block.kept += e * block_weights;
  result.blocks.assign(static_cast<size_t>(config.n_layer), block);

  const int64_t logits = e * vocab + kFloatBytes;  // and their sums
  result.before = tokens * dropout(config.token_dropout_p);
  result.head =
      tokens * norm + num_codes * (e * dim + logits) + (setup.is_casting() ? e * vocab * dim : 0);
  result.extra = num_codes * vocab * e;
  return result;
}

Activations var_activations(const var::VarConfig& config, const ActivationSetup& setup) {
  const int64_t dim = config.width(), ffn = config.ffn_dim(), vocab = config.codebook_size;
  const int64_t tokens = setup.batch * config.num_tokens();
  const int64_t e = setup.compute_bytes;
  // Input, modulated, and two sums.
  const auto norm = [&](int64_t input) { return input * dim + e * dim + 8; };
  const int64_t modulated_norm = norm(e);
  const int64_t qkv = 3 * e * dim;
  int64_t heads = qkv;
  if (config.attn_l2_norm) {
    heads += 3 * e * dim + 2 * kFloatBytes * config.heads();  // what is given on, and lengths
  }
  // By scales, with sums, and together.
  const int64_t mixed = (setup.is_widened ? 0 : e * dim + kFloatBytes * config.heads()) + e * dim;
  const int64_t per_token = 2 * modulated_norm + heads + mixed + e * dim +  // gated attention
                            2 * e * ffn + e * dim;                          // gated FFN
  const int64_t per_sample = 10 * e * dim;  // gates, scales and shifts, and what made them
  const int64_t adaln_weights = config.shared_adaln ? 0 : 6 * dim * dim;
  const int64_t block_weights = 4 * dim * dim + 2 * dim * ffn + adaln_weights;

  Activations result;
  Activations::Block block{.kept = tokens * per_token + setup.batch * per_sample,
                           .input = tokens * e * dim,
                           .working = tokens * (2 * e * ffn + 2 * e * dim)};
  if (setup.is_casting_blocks()) block.kept += e * block_weights;
  result.blocks.assign(static_cast<size_t>(config.depth), block);

  const int64_t head = norm(kFloatBytes) + kFloatBytes * (vocab + 1);  // logits, and their sums
  const int64_t head_weights =
      vocab * dim + 2 * dim * dim + (config.shared_adaln ? 6 * dim * dim : 0);
  result.before = tokens * kFloatBytes * config.z_channels;
  result.head = tokens * head + (setup.is_casting() ? e * head_weights : 0);
  result.extra = tokens * vocab * kFloatBytes;
  return result;
}

}  // namespace vgen::train
