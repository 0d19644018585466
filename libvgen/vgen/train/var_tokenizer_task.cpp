#include "vgen/train/var_tokenizer_task.h"

#include <cstdio>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/infer/multi_scale_config.h"

namespace vgen::train {

namespace {

constexpr const char* kHitsName = "quantize.ema_vocab_hit_SV";
constexpr double kLeastPower = 1e-12;  // of a latent, so that none gives no NaN
/// Validation batches whose pictures after each scale are decoded: K pictures an image.
constexpr int64_t kScaleBatches = 32;

/// "usage_p16"
std::string name_of_scale(const char* what, int64_t side) {
  std::string name = what;
  name += "_p";
  name += std::to_string(side);
  return name;
}

/// "0.024", "5.9", "64" per cent: one code of many is not nothing.
std::string percent_text(double share) {
  char text[32];
  std::snprintf(text, sizeof(text), share < 0.0995 ? "%.2g" : "%.0f", 100 * share);
  return text;
}

class MultiScaleModel : public TokenizerModel {
 public:
  MultiScaleModel(const VarTokenizerRunConfig& config, uint64_t seed)
      : care_(config.codebook),
        micro_batches_(config.run.grad_accum_steps),
        seed_(seed),
        vqvae_(config.model) {}

  torch::nn::Module& module() override { return *vqvae_; }
  TokenizerShape shape() const override { return shape_of(vqvae_->config()); }
  void set_compute_dtype(torch::ScalarType dtype) override { vqvae_->set_compute_dtype(dtype); }
  void set_ranks(nn::BatchRanks* ranks) override {
    ranks_ = ranks;
    vqvae_->quantize->set_ranks(ranks);
  }
  std::vector<std::shared_ptr<torch::nn::Module>> blocks() const override {
    return vqvae_->blocks();
  }
  const torch::Tensor& last_weight() const override { return vqvae_->decoder->last_weight(); }

  Output train_forward(const torch::Tensor& image_B3HW, int64_t step, size_t micro_batch) override {
    auto& quantizer = *vqvae_->quantize;
    const int64_t num_scales = num_patch_nums();
    const int64_t batch = image_B3HW.size(0) * nn::num_ranks(ranks_);
    const int64_t forwards = (step - 1) * micro_batches_ + static_cast<int64_t>(micro_batch);
    int64_t reseeded = 0;
    if (is_reseeding(step, micro_batch)) {
      const torch::NoGradGuard no_grad;
      const auto latent_BZhh = nn::whole_batch(ranks_, vqvae_->encode_latent(image_B3HW));
      reseeded = tokenizer::reseed_codes(quantizer, latent_BZhh, care_.reseed_below,
                                         rng(Purpose::kInit, step, micro_batch));
    }
    torch::Tensor last_scale_B;
    if (care_.scale_dropout > 0 && num_scales > 1) {
      const auto drawn_B = tokenizer::draw_last_scales(batch, num_scales, care_.scale_dropout,
                                                       rng(Purpose::kDropout, step, micro_batch));
      last_scale_B = nn::own_share(ranks_, drawn_B).contiguous().to(image_B3HW.device());
    }
    quantizer.set_hits_recorded(forwards * num_scales);
    auto output = vqvae_->forward_until(image_B3HW, last_scale_B);

    const torch::Tensor is_used_KV = tokenizer::used_codes_KV(quantizer, batch, care_.reseed_below);
    const torch::Tensor is_used_V = is_used_KV.any(0);
    const torch::Tensor usage_K = is_used_KV.to(torch::kFloat32).mean(1);
    Output result;
    result.has_moved_codes = reseeded > 0;
    result.image_B3HW = std::move(output.image_B3SS);
    result.losses.vq_loss = std::move(output.quantized.loss);
    result.losses.codebook_usage = is_used_V.to(torch::kFloat32).mean();
    result.terms = {
        {"dead_codes", is_used_V.logical_not().sum().to(torch::kFloat32)},
        {"reseeded_codes", torch::full({}, static_cast<float>(reseeded), usage_K.options())}};
    const torch::Tensor left_K =
        output.quantized.error_K / output.quantized.power.clamp_min(kLeastPower);
    for (int64_t k = 0; k < num_scales; ++k) {
      result.terms.emplace_back(name_of("usage", k), usage_K[k]);
      result.terms.emplace_back(name_of("error", k), left_K[k]);
    }
    return result;
  }

  torch::Tensor reconstruct(const torch::Tensor& image_B3HW) override {
    return vqvae_->forward(image_B3HW).image_B3SS;
  }

  torch::Tensor measure(const torch::Tensor& image_B3HW, bool counts) override {
    const auto output = vqvae_->forward(image_B3HW);
    if (counts) used_KV_ += output.quantized.hits_KV;
    if (batches_seen_++ % scale_stride_ == 0) {
      const auto images = vqvae_->decode_scales(output.quantized.index_BL);
      if (counts) add_scales(images, image_B3HW);
    }
    return output.image_B3SS;
  }

  void begin_validation(int64_t num_batches) override {
    used_KV_ = torch::zeros_like(vqvae_->quantize->ema_vocab_hit_KV());
    scale_stride_ = (num_batches + kScaleBatches - 1) / kScaleBatches;
    batches_seen_ = scale_images_ = 0;
    rec_loss_sums_.assign(static_cast<size_t>(num_patch_nums()), 0);
  }

  std::map<std::string, double> code_metrics() const override {
    std::vector<double> numbers = rec_loss_sums_;
    numbers.push_back(static_cast<double>(scale_images_));
    const torch::Tensor sums =
        torch::cat({used_KV_.flatten().to(torch::kFloat64),
                    torch::tensor(numbers, used_KV_.options().dtype(torch::kFloat64))});
    if (ranks_ != nullptr) ranks_->sum(sums);
    const torch::Tensor is_used_KV = sums.slice(0, 0, used_KV_.numel()).view_as(used_KV_).gt(0);
    const torch::Tensor is_used_V = is_used_KV.any(0);
    const torch::Tensor rec_losses = sums.slice(0, used_KV_.numel());  // K sums, then the images
    const auto share = [](const torch::Tensor& is_used) {
      return is_used.to(torch::kFloat64).mean().item<double>();
    };
    std::map<std::string, double> metrics{
        {"codebook_usage", share(is_used_V)},
        {"dead_codes", is_used_V.logical_not().sum().item<double>()}};
    for (int64_t k = 0; k < num_patch_nums(); ++k) {
      metrics[name_of("usage", k)] = share(is_used_KV[k]);
      metrics[name_of("rec_loss", k)] = (rec_losses[k] / rec_losses[-1]).item<double>();
    }
    return metrics;
  }

  void load(io::StateDict state) override {
    // Weights serve any schedule; averages of another number of scales are left out. Codes whose
    // averages are not known live, so that reseeding leaves them where they are.
    torch::Tensor hits_KV = vqvae_->quantize->ema_vocab_hit_KV();
    const auto expected = hits_KV.sizes();
    hits_KV.fill_(1);
    std::erase_if(state.tensors, [&](const io::NamedArray& item) {
      return item.name == kHitsName && checkpoint::as_tensor(item.array).sizes() != expected;
    });
    checkpoint::load_into(*vqvae_, state, {.optional = {kHitsName}});
  }

 private:
  int64_t num_patch_nums() const {
    return static_cast<int64_t>(vqvae_->config().patch_nums.size());
  }
  std::string name_of(const char* what, int64_t scale) const {
    return name_of_scale(what, vqvae_->config().patch_nums[static_cast<size_t>(scale)]);
  }
  void add_scales(const std::vector<torch::Tensor>& images, const torch::Tensor& image_B3HW) {
    const int64_t batch = image_B3HW.size(0);
    scale_images_ += batch;
    for (size_t k = 0; k < images.size(); ++k) {
      rec_loss_sums_[k] +=
          static_cast<double>(batch) * torch::mse_loss(images[k], image_B3HW).item<double>();
    }
  }
  bool is_reseeding(int64_t step, size_t micro_batch) const {
    const bool is_over = care_.reseed_until > 0 && step > care_.reseed_until;
    return care_.reseed_every > 0 && !is_over && micro_batch == 0 && step % care_.reseed_every == 0;
  }
  /// The trainer takes index 0 of a step for the dropout of layers.
  Rng rng(Purpose purpose, int64_t step, size_t micro_batch) const {
    return Rng(seed_, purpose, static_cast<uint64_t>(step), (uint64_t{1} << 32) + micro_batch);
  }

  tokenizer::CodebookCareConfig care_;
  int64_t micro_batches_;  ///< of a step
  uint64_t seed_;
  tokenizer::MultiScaleVqvae vqvae_;
  nn::BatchRanks* ranks_ = nullptr;

  // Of a validation, of this rank.
  torch::Tensor used_KV_;     ///< float32, how often the images use a code
  int64_t scale_stride_ = 1;  ///< of the batches whose scales are decoded
  int64_t batches_seen_ = 0, scale_images_ = 0;
  std::vector<double> rec_loss_sums_;  ///< of each scale, over scale_images_ images
};

}  // namespace

void validate(const VarTokenizerRunConfig& config) {
  tokenizer::validate(config.model);
  require(config.data.image_size == config.model.image_size(), ErrorCode::kInvalidArgument,
          "data.image_size is ", config.data.image_size, ", but model.patch_nums ends with ",
          config.model.patch_nums.back(), " cells of ", config.model.downsample(),
          " pixels a side, which is an image of ", config.model.image_size());
  validate_recipe(config);
}

VarTokenizerTask::VarTokenizerTask(const VarTokenizerRunConfig& config, const TaskContext& context)
    : TokenizerTask(config, make_multi_scale_model(config, context.seed), context),
      patch_nums_(config.model.patch_nums) {}

io::Metadata VarTokenizerTask::metadata() const {
  return {{infer::kPatchNumsKey, format_shape(patch_nums_)}};
}

std::string VarTokenizerTask::headline_text(const Metrics& means) const {
  std::map<std::string, double> mean(means.begin(), means.end());
  if (!mean.contains("dead_codes")) return TokenizerTask::headline_text(means);
  const auto percents = [&](const char* what) {
    std::string text = what;
    for (const int64_t side : patch_nums_) {
      text += ' ';
      text += percent_text(mean[name_of_scale(what, side)]);
    }
    return text + " %";
  };
  return str_cat(TokenizerTask::headline_text(means), " | ", percents("usage"), " | dead ",
                 format_fixed(mean["dead_codes"], 0), " | ", percents("error"));
}

std::unique_ptr<TokenizerModel> make_multi_scale_model(const VarTokenizerRunConfig& config,
                                                       uint64_t seed) {
  return std::make_unique<MultiScaleModel>(config, seed);
}

}  // namespace vgen::train
