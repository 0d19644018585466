#include "vgen/train/plan_activations.h"

#include <algorithm>

namespace vgen::train {

namespace {

constexpr int64_t kFloatBytes = 4;

/// Counts over the layers of an encoder or decoder, at the resolution that they have.
class CoderCounter {
 public:
  explicit CoderCounter(int64_t side) : side_(static_cast<double>(side)) {}

  void conv(int64_t in, int64_t out, int64_t kernel = 3) {
    const auto size = static_cast<double>(kernel * kernel * in * out);
    cost_.forward_flops += 2 * size * pixels();
  }
  /// From now on a block is counted, until the next call.
  void begin_block(int64_t channels) {
    cost_.blocks.push_back({.input = static_cast<double>(channels) * pixels()});
  }
  void end_blocks() { is_behind_ = true; }
  /// Kept as they are by both.
  void keep(int64_t channels) { keep(channels, channels); }
  void keep(int64_t on_cpu, int64_t on_cuda) {
    const bool is_outside = is_behind_ || cost_.blocks.empty();
    CoderCost::Kept& kept = is_outside ? cost_.outside : cost_.blocks.back();
    kept.cpu += static_cast<double>(on_cpu) * pixels();
    kept.cuda += static_cast<double>(on_cuda) * pixels();
  }
  /// Norm, SiLU and convolution: one operator on the CPU, which keeps its input alone.
  void norm_conv(int64_t in, int64_t out) {
    conv(in, out);
    keep(in, 3 * in);
  }
  void res_block(int64_t in, int64_t out) {
    norm_conv(in, out);
    norm_conv(out, out);
    if (in != out) conv(in, out, 1);
  }
  void attention(int64_t channels) {
    for (int i = 0; i < 4; ++i) conv(channels, channels, 1);
    cost_.forward_flops += 4 * static_cast<double>(channels) * pixels() * pixels();
    keep(6 * channels);  // input, normed, queries, keys, values, mixed
  }
  void down(int64_t channels) {
    keep(channels);
    side_ /= 2;
    conv(channels, channels);
  }
  void up(int64_t channels) {
    keep(channels, 4 * channels);  // the CPU doubles it again in the backward pass
    side_ *= 2;
    conv(channels, channels);
  }

  const CoderCost& cost() const { return cost_; }

 private:
  double pixels() const { return side_ * side_; }

  double side_;
  bool is_behind_ = false;  ///< the blocks
  CoderCost cost_;
};

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
    in_block = last.working + (is_checkpointed ? last.kept - last.input : 0);
  }
  return kept(is_checkpointed) - head + std::max(head + extra, in_block);
}

int64_t Activations::peak_with(const dist::PassMemory& pass, bool is_checkpointed) const {
  int64_t most = std::max(kept(is_checkpointed) + extra + pass.begin, pass.end);
  if (blocks.empty()) return std::max(most, peak(is_checkpointed) + pass.end);
  int64_t left = before;  // of what was kept, while block i computes
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Block& block = blocks[i];
    most = std::max(most, left + block.kept + block.working + pass.blocks.at(i));
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
  const auto dropout = [&](double p, int64_t width) {
    return p == 0 ? 0 : dim * (setup.is_cpu ? width : 1);  // a factor, or on CUDA a bool
  };
  // A norm keeps its input. Composed of operators, as it is with narrow weights on the CPU too, it
  // keeps the normed values before their weight as well.
  const auto norm = [&](bool is_fused) { return s * dim + (is_fused ? 4 : s * dim); };
  const int64_t block_norm = norm(setup.is_cpu && !setup.has_narrow_blocks);
  const int64_t heads = setup.is_cpu
                            ? e * (dim + 2 * key_dim)                         // turned, one tensor
                            : e * (dim + key_dim) + e * (dim + 2 * key_dim);  // and the values' own
  const int64_t attention = block_norm + e * dim + heads + e * dim +
                            kFloatBytes * config.n_head +  // mixed, and its sums
                            dropout(config.resid_dropout_p, e);
  // A cast of an input is kept by each product that takes it.
  const int64_t feed_forward = block_norm + (setup.is_mixed() ? 2 : 1) * e * dim +
                               (setup.is_cpu ? 3 : 4) * e * ffn + dropout(config.ffn_dropout_p, e);
  const int64_t block_weights = (dim + 2 * key_dim) * dim + dim * dim + 3 * dim * ffn;

  Activations result;
  // Gradients of the FFN's products, and of the hidden states on both sides of a sum.
  Activations::Block block{.kept = tokens * (attention + feed_forward),
                           .input = tokens * s * dim,
                           .working = tokens * ((setup.is_cpu ? 2 : 3) * e * ffn + 2 * s * dim)};
  if (setup.is_casting_blocks()) block.kept += e * block_weights;
  result.blocks.assign(static_cast<size_t>(config.n_layer), block);

  const int64_t logits = setup.is_cpu ? e * vocab + kFloatBytes : kFloatBytes * vocab;
  result.before = tokens * dropout(config.token_dropout_p, s);
  result.head = tokens * norm(setup.is_cpu) + num_codes * (e * dim + logits) +
                (setup.is_mixed() ? e * vocab * dim : 0);
  result.extra = num_codes * vocab * (setup.is_cpu ? e : 2 * kFloatBytes);
  return result;
}

Activations var_activations(const var::VarConfig& config, const ActivationSetup& setup) {
  const int64_t dim = config.width(), ffn = config.ffn_dim(), vocab = config.codebook_size;
  const int64_t tokens = setup.batch * config.num_tokens();
  const int64_t e = setup.compute_bytes;
  // Input, modulated and sums, which is all on the CPU. On CUDA the normed ones, too, and autocast
  // makes layer norms float32, of a copy of their input.
  const auto norm = [&](int64_t input) {
    return input * dim + (setup.is_cpu ? 0 : kFloatBytes * dim) + e * dim + 8;
  };
  const int64_t modulated_norm = norm(setup.is_cpu ? e : kFloatBytes);
  const int64_t qkv = 3 * e * dim;
  int64_t heads = qkv;
  if (config.attn_l2_norm && setup.is_cpu) {
    heads += 3 * e * dim + 2 * kFloatBytes * config.heads();  // what is given on, and lengths
  } else if (config.attn_l2_norm) {
    // Float32 copies of queries and keys, the unit queries before their scale, what is given on.
    heads += setup.is_mixed() ? (3 * kFloatBytes + 2 * e) * dim : 3 * kFloatBytes * dim;
    heads += 4 * kFloatBytes * config.heads();
  }
  const int64_t mixed = 2 * e * dim + kFloatBytes * config.heads();  // by scales, and together
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
  result.head = tokens * head + (setup.is_mixed() ? e * head_weights : 0);
  result.extra = tokens * vocab * (setup.is_cpu ? kFloatBytes : 2 * kFloatBytes);
  return result;
}

CoderCost encoder_cost(const tokenizer::CoderConfig& config, int64_t side) {
  CoderCounter counter(side);
  counter.keep(3);
  counter.conv(3, config.ch);
  int64_t channels = config.ch;
  for (size_t level = 0; level < config.ch_mult.size(); ++level) {
    const int64_t out = config.ch * config.ch_mult[level];
    const bool is_last = level + 1 == config.ch_mult.size();
    counter.begin_block(channels);
    for (int64_t i = 0; i < config.num_res_blocks; ++i, channels = out) {
      counter.res_block(channels, out);
      if (is_last) counter.attention(out);
    }
    if (!is_last) counter.down(out);
  }
  counter.begin_block(channels);
  counter.res_block(channels, channels);
  counter.attention(channels);
  counter.res_block(channels, channels);
  counter.end_blocks();
  counter.norm_conv(channels, config.z_channels);
  return counter.cost();
}

CoderCost decoder_cost(const tokenizer::CoderConfig& config, int64_t side) {
  const size_t levels = config.ch_mult.size();
  CoderCounter counter(side >> (levels - 1));
  int64_t channels = config.ch * config.ch_mult.back();
  counter.keep(config.z_channels);
  counter.conv(config.z_channels, channels);
  counter.begin_block(channels);
  counter.res_block(channels, channels);
  counter.attention(channels);
  counter.res_block(channels, channels);
  for (size_t level = levels; level-- > 0;) {
    const int64_t out = config.ch * config.ch_mult[level];
    counter.begin_block(channels);
    for (int64_t i = 0; i < config.num_res_blocks; ++i, channels = out) {
      counter.res_block(channels, out);
      if (level + 1 == levels) counter.attention(out);
    }
    if (level != 0) counter.up(out);
  }
  counter.end_blocks();
  counter.norm_conv(channels, 3);
  return counter.cost();
}

}  // namespace vgen::train
