#include "vgen/infer/var_generate.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <limits>

#include "vgen/core/random.h"

namespace vgen::infer {

namespace {

constexpr const char* kUseItsOwn = "use the tokenizer that the transformer was trained with";

// One batch, scale by scale.
class Drawing {
 public:
  Drawing(VarEngine& engine, const MultiScaleTokenizer& tokenizer,
          std::span<const VarRequest> requests, const VarSettings& settings)
      : engine_(engine),
        tokenizer_(tokenizer),
        config_(engine.config()),
        requests_(requests),
        settings_(settings),
        size_(static_cast<int64_t>(requests.size())) {
    check_given();
    code_BL_ = at::empty({size_, config_.num_tokens()}, at::kLong);
    const int64_t side = config_.patch_nums.back();
    latent_ =
        at::zeros({size_, config_.z_channels, side, side}, at::TensorOptions(tokenizer.device()));
    for (int i = 0; i < at::get_num_threads(); ++i) {
      samplers_.emplace_back(config_.codebook_size, kernels::best_cpu_isa());
    }
  }

  VarImages run(const VarProgress& progress);

 private:
  void check_given() const;
  double share(int64_t scale) const {
    return config_.num_scales() == 1 ? 0 : static_cast<double>(scale) / (config_.num_scales() - 1);
  }
  /// As a factor: (1 + t) c - t n = n + (1 + t)(c - n).
  double guidance_of(int64_t scale) const { return 1 + settings_.cfg_scale * share(scale); }
  /// What decides the code of a row of a scale: the same in every batch.
  double uniform_of(int64_t scale, int64_t row) const {
    const int64_t first = config_.scale_begin(scale), tokens = config_.scale_end(scale) - first;
    return Rng(settings_.seed, Purpose::kSampling, static_cast<uint64_t>(first + row % tokens),
               requests_[row / tokens].image)
        .uniform();
  }
  at::Tensor choose(int64_t scale, const at::Tensor& logits_SPV);
  at::Tensor choose_on_device(int64_t scale, const at::Tensor& logits_SPV);
  void mix(int64_t scale, int64_t row, std::span<const float> filtered_V,
           std::span<float> part_V) const;
  void keep_given(int64_t scale, at::Tensor& vectors_BPZ);

  VarEngine& engine_;
  const MultiScaleTokenizer& tokenizer_;
  const var::VarConfig& config_;
  std::span<const VarRequest> requests_;
  const VarSettings& settings_;
  int64_t size_;
  at::Tensor code_BL_, latent_;
  std::vector<kernels::TokenSampler> samplers_;
};

void Drawing::check_given() const {
  const std::vector<int64_t> expected = {config_.num_tokens()};
  for (const VarRequest& request : requests_) {
    require(request.label >= 0 && request.label <= config_.num_classes, ErrorCode::kInvalidArgument,
            "class ", request.label, ": expected 0 to ", config_.num_classes - 1, ", or ",
            config_.num_classes, " for none");
    if (!request.given_L.defined() && !request.is_kept_L.defined()) continue;
    require(request.given_L.defined() && request.is_kept_L.defined() &&
                request.given_L.sizes() == expected && request.is_kept_L.sizes() == expected &&
                request.given_L.scalar_type() == at::kLong &&
                request.is_kept_L.scalar_type() == at::kBool,
            ErrorCode::kInvalidArgument, "given codes: expected int64 and bool [", expected[0],
            "]");
    const int64_t low = request.given_L.min().item<int64_t>();
    const int64_t high = request.given_L.max().item<int64_t>();
    require(low >= 0 && high < config_.codebook_size, ErrorCode::kInvalidArgument,
            "given codes: ", low < 0 ? low : high, " is outside the codebook of ",
            config_.codebook_size);
  }
}

// What the next scales see of row `row`: how much of each code.
void Drawing::mix(int64_t scale, int64_t row, std::span<const float> filtered_V,
                  std::span<float> part_V) const {
  const int64_t tokens = config_.scale_end(scale) - config_.scale_begin(scale);
  Rng rng(settings_.seed, Purpose::kSmoothing,
          static_cast<uint64_t>(config_.scale_begin(scale) + row % tokens),
          requests_[row / tokens].image);
  std::vector<double> noise_V(filtered_V.size());
  for (double& noise : noise_V) {
    noise = -std::log(std::max(-std::log1p(-rng.uniform()), 1e-300));  // Gumbel
  }
  mixture_parts(filtered_V, noise_V, share(scale), part_V);
}

// Draws the codes of a scale. Returns their vectors (B, P, Z), on the tokenizer's device.
at::Tensor Drawing::choose(int64_t scale, const at::Tensor& logits_SPV) {
  const int64_t first = config_.scale_begin(scale), tokens = config_.scale_end(scale) - first;
  const int64_t rows = size_ * tokens, vocab = config_.codebook_size;
  if (!logits_SPV.device().is_cpu() && !settings_.more_smooth) {
    return choose_on_device(scale, logits_SPV);
  }
  const at::Tensor logits = logits_SPV.cpu().contiguous();
  const float* logit = logits.const_data_ptr<float>();
  const double guidance = guidance_of(scale);
  const bool is_guided = settings_.is_guided() && guidance > 1;
  at::Tensor mixture_RV;
  if (settings_.more_smooth) mixture_RV = at::empty({rows, vocab}, at::kFloat);
  auto* codes = code_BL_.mutable_data_ptr<int64_t>();
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    kernels::TokenSampler& sampler = samplers_[static_cast<size_t>(at::get_thread_num())];
    const auto row_of = [&](int64_t row) {
      return std::span(logit + row * vocab, static_cast<size_t>(vocab));
    };
    for (int64_t row = begin; row < end; ++row) {
      codes[row / tokens * config_.num_tokens() + first + row % tokens] =
          sampler.sample(row_of(row), is_guided ? row_of(rows + row) : std::span<const float>(),
                         guidance, settings_.filter, uniform_of(scale, row));
      if (settings_.more_smooth) {
        float* parts = mixture_RV.mutable_data_ptr<float>() + row * vocab;
        mix(scale, row, sampler.filtered(), std::span(parts, static_cast<size_t>(vocab)));
      }
    }
  });
  tokenizer::MultiScaleQuantizerImpl& quantizer = tokenizer_.quantizer();
  if (settings_.more_smooth) {
    return mixture_RV.to(tokenizer_.device())
        .matmul(quantizer.codebook_VZ())
        .view({size_, tokens, config_.z_channels});
  }
  return quantizer.lookup(code_BL_.slice(1, first, first + tokens).to(tokenizer_.device()));
}

// The same where the logits are.
at::Tensor Drawing::choose_on_device(int64_t scale, const at::Tensor& logits_SPV) {
  const int64_t first = config_.scale_begin(scale), tokens = config_.scale_end(scale) - first;
  const int64_t rows = size_ * tokens;
  const at::Tensor logits = logits_SPV.reshape({-1, config_.codebook_size});
  const at::Tensor uniform_R = at::empty({rows}, at::kDouble);
  auto* uniform = uniform_R.mutable_data_ptr<double>();
  for (int64_t row = 0; row < rows; ++row) uniform[row] = uniform_of(scale, row);
  const double guidance = guidance_of(scale);
  const at::Tensor null_RV =
      settings_.is_guided() && guidance > 1 ? logits.slice(0, rows) : at::Tensor();
  const at::Tensor code_BP = kernels::sample_tokens(logits.slice(0, 0, rows), null_RV, guidance,
                                                    settings_.filter, uniform_R)
                                 .view({size_, tokens});
  code_BL_.slice(1, first, first + tokens).copy_(code_BP);
  return tokenizer_.quantizer().lookup(code_BP.to(tokenizer_.device()));
}

// Given codes in the place of drawn ones.
void Drawing::keep_given(int64_t scale, at::Tensor& vectors_BPZ) {
  const int64_t first = config_.scale_begin(scale), last = config_.scale_end(scale);
  for (int64_t b = 0; b < size_; ++b) {
    const VarRequest& request = requests_[b];
    if (!request.given_L.defined()) continue;
    const at::Tensor is_kept_P = request.is_kept_L.slice(0, first, last);
    const at::Tensor given_P = request.given_L.slice(0, first, last);
    at::Tensor code_P = code_BL_[b].slice(0, first, last);
    code_P.copy_(at::where(is_kept_P, given_P, code_P));
    const auto device = tokenizer_.device();
    const at::Tensor given_PZ = tokenizer_.quantizer().lookup(given_P.to(device));
    vectors_BPZ[b].copy_(at::where(is_kept_P.to(device).unsqueeze(1), given_PZ, vectors_BPZ[b]));
  }
}

VarImages Drawing::run(const VarProgress& progress) {
  const at::NoGradGuard no_grad;
  const int64_t sequences = settings_.is_guided() ? 2 * size_ : size_;
  at::Tensor label_S = at::full({sequences}, config_.num_classes, at::kLong);
  for (int64_t b = 0; b < size_; ++b) label_S[b] = requests_[b].label;
  engine_.start(label_S);
  VarImages images;
  at::Tensor next_BPZ;
  for (int64_t scale = 0; scale < config_.num_scales(); ++scale) {
    const int64_t side = config_.patch_nums[scale];
    at::Tensor vectors_BPZ = choose(scale, engine_.run_scale(next_BPZ));
    keep_given(scale, vectors_BPZ);
    const at::Tensor h_BZpp =
        vectors_BPZ.transpose(1, 2).reshape({size_, config_.z_channels, side, side});
    tokenizer_.quantizer().add_scale(scale, h_BZpp, latent_);
    if (progress.keep_scales) images.latents.push_back(latent_.clone());
    if (progress.on_tokens) progress.on_tokens(size_ * side * side);
    if (scale + 1 < config_.num_scales()) {
      next_BPZ = tokenizer_.quantizer().next_input(scale + 1, latent_);
    }
  }
  images.code_BL = code_BL_;
  images.latent_BZhh = latent_;
  return images;
}

std::string format_scales(const std::vector<int64_t>& patch_nums) {
  std::vector<std::string> sides;
  for (const int64_t side : patch_nums) sides.push_back(std::to_string(side));
  return join(sides, " ");
}

}  // namespace

void validate(const VarSettings& settings) {
  const auto check = [](bool is_valid, const char* name, double value, const char* expected) {
    require(is_valid, ErrorCode::kInvalidArgument, name, " ", value, ": expected ", expected);
  };
  const kernels::TokenFilter& filter = settings.filter;
  check(settings.cfg_scale >= 0 && std::isfinite(settings.cfg_scale), "cfg-scale",
        settings.cfg_scale, "at least 0");
  check(filter.temperature >= 0 && std::isfinite(filter.temperature), "temperature",
        filter.temperature, "at least 0");
  check(filter.top_k >= 0, "top-k", static_cast<double>(filter.top_k), "at least 0, 0 = off");
  check(filter.top_p > 0 && filter.top_p <= 1, "top-p", filter.top_p,
        "above 0 and at most 1, 1 = off");
}

VarImages generate_var(VarEngine& engine, const MultiScaleTokenizer& tokenizer,
                       std::span<const VarRequest> requests, const VarSettings& settings,
                       const VarProgress& progress) {
  require(!requests.empty(), ErrorCode::kInvalidArgument, "no image is asked for");
  return Drawing(engine, tokenizer, requests, settings).run(progress);
}

void check_fits(const var::VarConfig& config, const std::string& source,
                const MultiScaleTokenizer& tokenizer, const std::string& tokenizer_source) {
  const auto& scales = tokenizer.patch_nums();
  require(config.patch_nums == scales, ErrorCode::kInvalidArgument, source, ": has the scales ",
          format_scales(config.patch_nums), ", but ", tokenizer_source, " has ",
          format_scales(scales), "; a transformer draws codes of the tokenizer's scales");
  require(config.codebook_size == tokenizer.codebook_size(), ErrorCode::kInvalidArgument, source,
          ": has a vocabulary of ", config.codebook_size, ", but the codebook of ",
          tokenizer_source, " has ", tokenizer.codebook_size(), " entries; ", kUseItsOwn);
  const int64_t channels = tokenizer.quantizer().config().z_channels;
  require(config.z_channels == channels, ErrorCode::kInvalidArgument, source, ": reads codes of ",
          config.z_channels, " channels, but those of ", tokenizer_source, " have ", channels, "; ",
          kUseItsOwn);
}

void mixture_parts(std::span<const float> filtered_V, std::span<const double> noise_V, double ratio,
                   std::span<float> part_V) {
  TORCH_INTERNAL_ASSERT(filtered_V.size() == noise_V.size() && filtered_V.size() == part_V.size());
  const double tau = std::max(0.27 * (1 - 0.95 * ratio), 0.005);
  std::vector<double> value_V(filtered_V.size());
  double largest = -std::numeric_limits<double>::infinity();
  for (size_t v = 0; v < value_V.size(); ++v) {
    value_V[v] = (static_cast<double>(filtered_V[v]) * (1 + ratio) + noise_V[v]) / tau;
    largest = std::max(largest, value_V[v]);
  }
  double sum = 0;
  for (double& value : value_V) sum += value = std::exp(value - largest);
  for (size_t v = 0; v < value_V.size(); ++v) part_V[v] = static_cast<float>(value_V[v] / sum);
}

at::Tensor kept_codes(const at::Tensor& mask_hh, const std::vector<int64_t>& patch_nums) {
  const int64_t side = patch_nums.back();
  require(mask_hh.dim() == 2 && mask_hh.size(0) == side && mask_hh.size(1) == side,
          ErrorCode::kInvalidArgument, "mask: ", format_shape(mask_hh.sizes().vec()),
          ", expected [", side, ", ", side, "]");
  const at::Tensor mask_11hh = mask_hh.to(at::kFloat).view({1, 1, side, side});
  std::vector<at::Tensor> parts;
  for (const int64_t p : patch_nums) {
    const at::Tensor kept = at::upsample_bilinear2d(mask_11hh, {p, p}, /*align_corners=*/false);
    parts.push_back(p == 1 ? at::ones({1}, at::kBool) : kept.flatten() > 0.5);
  }
  return at::cat(parts);
}

}  // namespace vgen::infer
