#include "vgen/train/tokenizer_cost.h"

#include <algorithm>
#include <utility>

namespace vgen::train {

namespace {

constexpr int64_t kFloatBytes = 4, kIndexBytes = 8;
/// Of kernels/winograd.cpp: numbers of a transformed tile, tiles that its weight gradient
/// transforms at once, and products of channels per tile up to which it is used.
constexpr int64_t kWinogradPoints = 36, kWinogradTiles = 192, kWinogradProducts = 4096;

/// Convolutions of VGG16 between its poolings, and their width.
struct VggSlice {
  int num_convs;
  int64_t width;
};
constexpr VggSlice kVggSlices[] = {{2, 64}, {2, 128}, {3, 256}, {3, 512}, {3, 512}};

/// Counts layers in the order of the forward pass. Values are counted per pixel of the resolution
/// that the layers have at that moment.
class LayerCounter {
 public:
  LayerCounter(const ActivationSetup& setup, int64_t side)
      : setup_(setup), side_(side), sections_(1) {}

  /// Operations since the last call.
  double take_flops() { return std::exchange(flops_, 0); }

  // --- stretches of layers ---

  /// From now on a block is counted.
  void begin_block() {
    end_section();
    sections_.emplace_back();
    sections_.back().is_block = true;
    sections_.back().input = values(channels_);
  }
  void end_blocks() {
    end_section();
    sections_.emplace_back();
  }

  Activations activations() {
    end_section();
    Activations result;
    for (const Section& section : sections_) {
      const bool is_last = &section == &sections_.back();
      const auto kept = static_cast<int64_t>(section.kept());
      if (section.is_block) {
        result.blocks.push_back({.kept = kept,
                                 .input = static_cast<int64_t>(section.input),
                                 .working = static_cast<int64_t>(section.working()),
                                 .held = static_cast<int64_t>(section.output)});
      } else if (is_last) {
        result.head = kept;
        result.extra = static_cast<int64_t>(section.working());
      } else {
        result.before += kept;
      }
    }
    return result;
  }

  /// The last stretch is differentiated more than once: nothing goes before all of it has.
  void retain() { sections_.back().is_retained = true; }

  // --- layers ---

  void begin(int64_t channels) { channels_ = channels; }

  void conv(int64_t out, int64_t kernel = 3) {
    count_conv(channels_, out, kernel);
    add(values(channels_), values(channels_ + out));
    channels_ = out;
  }

  /// Norm, SiLU and convolution: one operator on the CPU, which keeps its input alone and computes
  /// what lies between a second time. On CUDA two, and of float32 three. `waiting`: values of a
  /// gradient that a branch beside it will want.
  void norm_conv(int64_t out, double waiting = 0) {
    const int64_t in = channels_;
    count_conv(in, out, 3);
    if (setup_.is_cpu) {
      add(values(in),
          waiting + values(in + out) + std::max(values(2 * in), winograd_scratch(in, out)));
    } else {
      add(values((setup_.is_mixed() ? 2 : 3) * in), waiting + values(in + std::max(in, out)));
    }
    channels_ = out;
  }

  void res_block(int64_t out, double dropout_p) {
    const int64_t in = channels_;
    const double shortcut = values(out);
    norm_conv(out, shortcut);
    if (dropout_p > 0) {
      // The CPU then keeps what lies between, too, and its mask, of factors; CUDA a mask of bools.
      add(setup_.is_cpu ? values(2 * out) : count(out), values(2 * out));
    }
    norm_conv(out, setup_.is_cpu ? 0 : shortcut);
    if (in != out) count_conv(in, out, 1);
  }

  void attention() {
    const int64_t c = channels_;
    for (int i = 0; i < 4; ++i) count_conv(c, c, 1);
    flops_ += 4 * static_cast<double>(c) * pixels() * pixels();
    // Input, normed, queries, keys, values, mixed, and its sums. Gradients: of the sum, of the
    // three, apart and together.
    add(values(6 * c) + kFloatBytes * count(1), values(7 * c));
  }

  void down() {
    const double input = values(channels_);
    side_ /= 2;
    count_conv(channels_, channels_, 3);
    add(input, input + values(2 * channels_));
  }

  void up() {
    const double input = values(channels_);
    side_ *= 2;
    count_conv(channels_, channels_, 3);
    if (setup_.is_cpu) {
      // It doubles the input again in the backward pass.
      const double doubled = values(channels_) + input + winograd_weights(channels_, channels_);
      add(input, values(channels_) + std::max(doubled, winograd_scratch(channels_, channels_)));
    } else {
      add(values(channels_), values(2 * channels_) + input);
    }
  }

  void encoder(const tokenizer::CoderConfig& config) {
    begin(3);
    conv(config.ch);
    for (size_t level = 0; level < config.ch_mult.size(); ++level) {
      const bool is_last = level + 1 == config.ch_mult.size();
      begin_block();
      res_blocks(config, level, is_last);
      if (!is_last) down();
    }
    middle(config.dropout_p);
    end_blocks();
    norm_conv(config.z_channels);
  }

  void decoder(const tokenizer::CoderConfig& config) {
    conv(config.ch * config.ch_mult.back());
    middle(config.dropout_p);
    for (size_t level = config.ch_mult.size(); level-- > 0;) {
      begin_block();
      res_blocks(config, level, level + 1 == config.ch_mult.size());
      if (level != 0) up();
    }
    end_blocks();
    norm_conv(3);
  }

  /// Float32 throughout. Returns the operations of its searches and of the entropy loss, which are
  /// not among those of take_flops().
  std::pair<double, double> quantizer(const TokenizerShape& shape) {
    const int64_t d = shape.code_channels, v = shape.codebook_size;
    conv(d, shape.latent_kernel);
    const double product = 2 * static_cast<double>(v * d);  // of a vector with all codes
    double search = 0, entropy = 0;
    if (shape.patch_nums.empty()) {
      // The latent, normed, its lengths; the codes, and what lies between them.
      add(kFloatBytes * count(6 * d), 0);
      search = product * pixels();
      if (shape.has_entropy_loss) {
        entropy = 3 * product * pixels();
        add(kFloatBytes * count(2 * v), 0);
      }
    } else {
      for (const int64_t p : shape.patch_nums) {
        search += product * static_cast<double>(p * p);
        if (shape.has_phi) count_conv(d, d, 3);
        add(kFloatBytes * count(shape.has_phi ? 2 * d : d), 0);  // what phi takes, and the sum
      }
      add(kFloatBytes * count(2 * d), 0);
    }
    conv(shape.decoder.z_channels, shape.latent_kernel);
    return {search, entropy};
  }

  /// On image and reconstruction; operations of one of the two.
  void lpips(bool has_dropout) {
    const int64_t full_side = side_;
    double taps = 0;
    for (const VggSlice& slice : kVggSlices) {
      taps += values(slice.width);
      side_ /= 2;
    }
    side_ = full_side;
    begin(3);
    add(values(3), values(3));
    double waiting = 0;  // gradients of the taps in front
    for (size_t s = 0; s < std::size(kVggSlices); ++s) {
      if (s > 0) {
        const double pooled_from = values(channels_);
        side_ /= 2;
        add(values(channels_) + kIndexBytes * count(channels_),
            waiting + pooled_from + values(channels_));
      }
      for (int i = 0; i < kVggSlices[s].num_convs; ++i) frozen_conv(kVggSlices[s].width, waiting);
      waiting += values(channels_);
    }
    // The distances in float32: the difference of both is kept. On the way the taps of the image,
    // both normed ones and the square are there, and on the way back five gradients.
    side_ = full_side;
    for (const VggSlice& slice : kVggSlices) {
      waiting -= values(slice.width);
      // A mask of dropout is not there at either moment.
      const double mask = has_dropout ? (setup_.is_cpu ? kFloatBytes : 1) * count(slice.width) : 0;
      double kept = mask + kFloatBytes * count(slice.width + 2);
      if (setup_.is_mixed()) kept += kFloatBytes * count(slice.width);
      const double difference = kFloatBytes * count(slice.width);
      add(kept, std::max(taps + 3 * difference, waiting + 5 * difference) - mask);
      side_ /= 2;
    }
    side_ = full_side;
  }

  void patchgan(int64_t dim, int64_t num_layers) {
    const int64_t full_side = side_;
    begin(3);
    patch_conv(dim, 2);
    leaky_relu();
    for (int64_t layer = 1; layer <= num_layers; ++layer) {
      patch_conv(dim << std::min<int64_t>(layer, 3), layer < num_layers ? 2 : 1);
      batch_norm();
      leaky_relu();
    }
    patch_conv(1, 1);
    side_ = full_side;
  }

  /// Operations alone.
  void stylegan() {
    const auto width = [](int64_t side) { return side <= 32 ? 512 : 512 * 32 / side; };
    const int64_t full_side = side_;
    count_conv(3, width(side_), 3);
    while (side_ > 4) {
      const int64_t in = width(side_), out = width(side_ / 2);
      count_conv(in, out, 3);
      count_conv(out, out, 3);
      side_ /= 2;
      count_conv(out, out, 3);
      count_conv(in, out, 1);
    }
    count_conv(width(4), width(4), 3);
    flops_ += 2 * static_cast<double>(width(4) * (16 * width(4) + 1));
    side_ = full_side;
  }

 private:
  /// Bytes.
  struct Layer {
    double kept = 0;
    double working = 0;  ///< beside what is kept up to here, in the forward or the backward pass
  };
  struct Section {
    std::vector<Layer> layers = {};
    bool is_block = false, is_retained = false;
    double input = 0, output = 0;

    double kept() const {
      double sum = 0;
      for (const Layer& layer : layers) sum += layer.kept;
      return sum;
    }
    /// The most beside all that is kept: what is kept goes layer by layer.
    double working() const {
      const double all = kept();
      double before = 0, most = 0;
      for (const Layer& layer : layers) {
        before += layer.kept;
        most = std::max(most, (is_retained ? all : before) + layer.working);
      }
      return std::max(0.0, most - all);
    }
  };

  double pixels() const { return static_cast<double>(side_ * side_); }
  /// Values of a micro-batch, and their bytes in the run's precision.
  double count(int64_t channels) const {
    return static_cast<double>(setup_.batch * channels) * pixels();
  }
  double values(int64_t channels) const {
    return static_cast<double>(setup_.compute_bytes) * count(channels);
  }
  void add(double kept, double working) { sections_.back().layers.push_back({kept, working}); }
  void end_section() { sections_.back().output = values(channels_); }

  /// Bytes of transformed weights, and of what a gradient to weights computes in.
  static double winograd_weights(int64_t in, int64_t out) {
    return kFloatBytes * kWinogradPoints * static_cast<double>(in * out);
  }
  static double winograd_scratch(int64_t in, int64_t out) {
    return winograd_weights(in, out) + winograd_weights(kWinogradTiles, in + out);
  }

  void count_conv(int64_t in, int64_t out, int64_t kernel) {
    const auto weights = static_cast<double>(kernel * kernel * in * out);
    flops_ += 2 * weights * pixels();
    // Convolutions on CUDA keep the weights that they cast.
    if (setup_.is_mixed() && !setup_.is_cpu) {
      add(static_cast<double>(setup_.compute_bytes) * weights, 0);
    }
  }

  void res_blocks(const tokenizer::CoderConfig& config, size_t level, bool has_attention) {
    for (int64_t i = 0; i < config.num_res_blocks; ++i) {
      res_block(config.ch * config.ch_mult[level], config.dropout_p);
      if (has_attention) attention();
    }
  }
  void middle(double dropout_p) {
    begin_block();
    res_block(channels_, dropout_p);
    attention();
    res_block(channels_, dropout_p);
  }

  /// 3x3 and ReLU, the weights not trained.
  void frozen_conv(int64_t out, double waiting) {
    const int64_t in = channels_;
    count_conv(in, out, 3);
    const double tiles = static_cast<double>(setup_.batch) * pixels() / 16;
    const bool is_transformed =
        setup_.is_cpu && tiles * kWinogradProducts >= static_cast<double>(in * out);
    // For a while, in either pass: the transformed weights or, where they are less, tiles.
    const double transformed =
        kFloatBytes * kWinogradPoints *
        std::min(static_cast<double>(in * out), tiles * static_cast<double>(in + out));
    add(values(out),
        waiting + std::max(values(2 * out), values(in + out) + (is_transformed ? transformed : 0)));
    channels_ = out;
  }

  /// 4x4 with a border of one.
  void patch_conv(int64_t out, int64_t stride) {
    const double input = values(channels_);
    side_ = (side_ - 2) / stride + 1;
    count_conv(channels_, out, 4);
    add(input, input + values(out));
    channels_ = out;
  }
  void leaky_relu() { add(values(channels_), values(2 * channels_)); }
  void batch_norm() {
    // Of ranks together it is composed of operators, in float32: the input and what is left of it
    // without its mean.
    const double composed = kFloatBytes * count(channels_);
    if (setup_.is_batch_shared) {
      add(2 * composed, 5 * composed);
    } else {
      add(values(channels_), values(2 * channels_));
    }
  }

  ActivationSetup setup_;
  int64_t side_;
  int64_t channels_ = 3;
  double flops_ = 0;
  std::vector<Section> sections_;
};

void discriminator(const tokenizer::VqLossConfig& loss, LayerCounter& counter) {
  if (loss.disc_type == "patchgan") counter.patchgan(loss.disc_dim, loss.disc_num_layers);
}

}  // namespace

TokenizerShape shape_of(const tokenizer::VqganConfig& config) {
  const auto coder = [&](const std::vector<int64_t>& ch_mult, int64_t more_res_blocks) {
    return tokenizer::CoderConfig{.ch = config.ch,
                                  .ch_mult = ch_mult,
                                  .num_res_blocks = config.num_res_blocks + more_res_blocks,
                                  .z_channels = config.z_channels,
                                  .dropout_p = config.dropout_p};
  };
  return {.encoder = coder(config.encoder_ch_mult, 0),
          .decoder = coder(config.decoder_ch_mult, 1),
          .codebook_size = config.codebook_size,
          .code_channels = config.codebook_embed_dim,
          .has_entropy_loss = config.entropy_loss_ratio != 0};
}

TokenizerShape shape_of(const tokenizer::MultiScaleVqvaeConfig& config) {
  const auto coder = [&](int64_t more_res_blocks) {
    return tokenizer::CoderConfig{.ch = config.ch,
                                  .ch_mult = config.ch_mult,
                                  .num_res_blocks = config.num_res_blocks + more_res_blocks,
                                  .z_channels = config.z_channels,
                                  .dropout_p = config.dropout_p};
  };
  return {.encoder = coder(0),
          .decoder = coder(1),
          .codebook_size = config.codebook_size,
          .code_channels = config.z_channels,
          .latent_kernel = config.quant_conv_kernel,
          .patch_nums = config.patch_nums,
          .has_phi = config.quant_resi != 0};
}

TokenizerFlops tokenizer_flops(const TokenizerShape& shape, const tokenizer::VqLossConfig& loss,
                               int64_t side) {
  LayerCounter counter({}, side);
  TokenizerFlops flops;
  counter.encoder(shape.encoder);
  const auto [search, entropy] = counter.quantizer(shape);
  flops.search = search;
  flops.entropy = entropy;
  flops.encode = counter.take_flops();
  counter.decoder(shape.decoder);
  flops.decode = counter.take_flops();
  if (loss.perceptual_weight != 0) counter.lpips(loss.perceptual_dropout);
  flops.vgg = counter.take_flops();
  if (loss.disc_weight > 0 && loss.disc_type == "stylegan") counter.stylegan();
  if (loss.disc_weight > 0) discriminator(loss, counter);
  flops.disc = counter.take_flops();
  return flops;
}

std::vector<Activations> tokenizer_activations(const TokenizerShape& shape,
                                               const tokenizer::VqLossConfig& loss, int64_t side,
                                               const ActivationSetup& setup) {
  LayerCounter generator(setup, side);
  generator.encoder(shape.encoder);
  generator.quantizer(shape);
  generator.decoder(shape.decoder);
  if (loss.disc_adaptive_weight) generator.retain();
  if (loss.perceptual_weight != 0) generator.lpips(loss.perceptual_dropout);
  if (loss.disc_weight > 0) discriminator(loss, generator);
  std::vector<Activations> phases{generator.activations()};
  if (loss.disc_weight > 0) {
    LayerCounter both(setup, side);
    for (int pass = 0; pass < 2; ++pass) discriminator(loss, both);  // real ones, reconstructions
    phases.push_back(both.activations());
  }
  // Images and reconstructions of all micro-batches.
  const int64_t images = kFloatBytes * setup.batch * setup.micro_batches * 2 * 3 * side * side;
  for (Activations& phase : phases) phase.before += images;
  return phases;
}

}  // namespace vgen::train
