#include "vgen/train/var_tokenizer_task.h"

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/error.h"
#include "vgen/core/strings.h"

namespace vgen::train {

namespace {

constexpr const char* kHitsName = "quantize.ema_vocab_hit_SV";

class MultiScaleModel : public TokenizerModel {
 public:
  MultiScaleModel(const VarTokenizerRunConfig& config, uint64_t seed)
      : care_(config.codebook),
        micro_batches_(config.run.grad_accum_steps),
        seed_(seed),
        vqvae_(config.model) {}

  torch::nn::Module& module() override { return *vqvae_; }
  void set_compute_dtype(torch::ScalarType dtype) override { vqvae_->set_compute_dtype(dtype); }
  const torch::Tensor& last_weight() const override { return vqvae_->decoder->last_weight(); }

  Output train_forward(const torch::Tensor& image_B3HW, int64_t step, size_t micro_batch) override {
    auto& quantizer = *vqvae_->quantize;
    const int64_t batch = image_B3HW.size(0), num_scales = num_patch_nums();
    const int64_t forwards = (step - 1) * micro_batches_ + static_cast<int64_t>(micro_batch);
    int64_t reseeded = 0;
    if (is_reseeding(step, micro_batch)) {
      const torch::NoGradGuard no_grad;
      reseeded =
          tokenizer::reseed_codes(quantizer, vqvae_->encode_latent(image_B3HW), care_.reseed_below,
                                  rng(Purpose::kInit, step, micro_batch));
    }
    torch::Tensor last_scale_B;
    if (care_.scale_dropout > 0 && num_scales > 1) {
      last_scale_B = tokenizer::draw_last_scales(batch, num_scales, care_.scale_dropout,
                                                 rng(Purpose::kDropout, step, micro_batch))
                         .to(image_B3HW.device());
    }
    quantizer.set_hits_recorded(forwards * num_scales);
    auto output = vqvae_->forward_until(image_B3HW, last_scale_B);

    const torch::Tensor is_used_KV = tokenizer::used_codes_KV(quantizer, batch, care_.reseed_below);
    const torch::Tensor is_used_V = is_used_KV.any(0);
    const torch::Tensor usage_K = is_used_KV.to(torch::kFloat32).mean(1);
    Output result;
    result.image_B3HW = std::move(output.image_B3SS);
    result.losses.vq_loss = std::move(output.quantized.loss);
    result.losses.codebook_usage = is_used_V.to(torch::kFloat32).mean();
    result.terms = {
        {"dead_codes", is_used_V.logical_not().sum().to(torch::kFloat32)},
        {"reseeded_codes", torch::full({}, static_cast<float>(reseeded), usage_K.options())}};
    for (int64_t k = 0; k < num_scales; ++k) {
      result.terms.emplace_back(name_of("usage", k), usage_K[k]);
    }
    return result;
  }

  torch::Tensor reconstruct(const torch::Tensor& image_B3HW) override {
    const auto output = vqvae_->forward(image_B3HW);
    if (!used_KV_.defined()) return output.image_B3SS;
    used_KV_ += output.quantized.hits_KV;
    if (rec_losses_.empty()) {
      for (const torch::Tensor& image : vqvae_->decode_scales(output.quantized.index_BL)) {
        rec_losses_.push_back(torch::mse_loss(image, image_B3HW).item<double>());
      }
    }
    return output.image_B3SS;
  }

  void begin_validation() override {
    used_KV_ = torch::zeros_like(vqvae_->quantize->ema_vocab_hit_KV());
    rec_losses_.clear();
  }

  std::map<std::string, double> code_metrics() const override {
    const torch::Tensor is_used_KV = used_KV_.gt(0), is_used_V = is_used_KV.any(0);
    const auto share = [](const torch::Tensor& is_used) {
      return is_used.to(torch::kFloat64).mean().item<double>();
    };
    std::map<std::string, double> metrics{
        {"codebook_usage", share(is_used_V)},
        {"dead_codes", is_used_V.logical_not().sum().item<double>()}};
    for (int64_t k = 0; k < num_patch_nums(); ++k) {
      metrics[name_of("usage", k)] = share(is_used_KV[k]);
      if (!rec_losses_.empty()) {
        metrics[name_of("rec_loss", k)] = rec_losses_[static_cast<size_t>(k)];
      }
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
  /// "usage_p16"
  std::string name_of(const char* what, int64_t scale) const {
    return str_cat(what, "_p", vqvae_->config().patch_nums[static_cast<size_t>(scale)]);
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
  torch::Tensor used_KV_;           ///< float32, how often validation images use a code
  std::vector<double> rec_losses_;  ///< of each scale, of the first batch of a validation
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

std::unique_ptr<TokenizerModel> make_multi_scale_model(const VarTokenizerRunConfig& config,
                                                       uint64_t seed) {
  return std::make_unique<MultiScaleModel>(config, seed);
}

}  // namespace vgen::train
