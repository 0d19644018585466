#include "vgen/infer/detail/gpt_cpu_engine.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

#include "vgen/core/random.h"
#include "vgen/infer/detail/slots.h"
#include "vgen/kernels/kv_cache.h"
#include "vgen/kernels/packed_linear.h"
#include "vgen/nn/rotary.h"

namespace vgen::infer {

namespace {

using kernels::CacheRow;
using kernels::PackedLinear;
using kernels::Storage;

Storage weight_storage(const std::string& precision) {
  if (precision == "int8") return Storage::kInt8;
  return precision == "bf16" ? Storage::kBFloat16 : Storage::kFloat32;
}

struct Layer {
  std::vector<float> attention_norm, ffn_norm;
  PackedLinear wqkv, wo, w13, w2;
};

std::vector<float> as_floats(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kFloat).contiguous();
  return {values.const_data_ptr<float>(), values.const_data_ptr<float>() + values.numel()};
}

// Row `row` of a (rows, C) tensor as float32.
void copy_row(const at::Tensor& table, int64_t row, float* to) {
  const int64_t width = table.size(1);
  if (table.scalar_type() == at::kFloat) {
    std::copy_n(table.const_data_ptr<float>() + row * width, width, to);
  } else if (table.scalar_type() == at::kBFloat16) {
    std::copy_n(table.const_data_ptr<at::BFloat16>() + row * width, width, to);
  } else {
    std::copy_n(table.const_data_ptr<at::Half>() + row * width, width, to);
  }
}

// R rows of a step, C = dim.
class GptCpuEngine : public GptEngine {
 public:
  GptCpuEngine(GptWeights weights, const GptEngineOptions& options);

  const at::Tensor& prefill(std::span<const GptPrompt> prompts) override;
  const at::Tensor& decode(std::span<const GptStep> steps) override;
  void sample(std::span<const GptChoice> choices, std::span<int64_t> tokens) override;

  int64_t length(int64_t slot) const override { return slots_.length(slot); }
  const gpt::GptConfig& config() const override { return config_; }
  int64_t num_slots() const override { return slots_.size(); }
  int64_t weight_bytes() const override;
  std::string description() const override {
    return str_cat("cpu, ", kernels::cpu_isa_name(isa_), ", ", precision_, " weights");
  }

 private:
  void pack_layers(GptWeights& weights);
  void run_layers();
  void write_logits(int64_t num_rows);
  void prefill_captions(std::span<const GptPrompt> prompts);

  gpt::GptConfig config_;
  std::string precision_;
  kernels::CpuIsa isa_;
  const kernels::DecodeKernels& kernels_;
  std::vector<Layer> layers_;
  std::vector<float> norm_;
  PackedLinear output_;
  at::Tensor token_table_, class_table_;   // embeddings, where the checkpoint has them
  at::Tensor uncond_caption_, fc1_, fc2_;  // t2i
  at::Tensor rope_SP2_;
  kernels::KvCache cache_;
  Slots slots_;
  std::vector<CacheRow> rows_;
  kernels::LinearScratch scratch_;
  std::vector<float> x_RC_, normed_RC_, qkv_, mixed_RC_, gated_;
  at::Tensor logits_;  // (slots, V)
  std::vector<kernels::TokenSampler> samplers_;
};

kernels::KvCacheShape cache_shape(const gpt::GptConfig& config, int64_t num_slots) {
  return {.num_slots = num_slots,
          .num_layers = config.n_layer,
          .num_heads = config.n_head,
          .num_kv_heads = config.num_kv_heads(),
          .head_dim = config.head_dim(),
          .max_length = config.cls_token_num + config.block_size};
}

GptCpuEngine::GptCpuEngine(GptWeights weights, const GptEngineOptions& options)
    : config_(weights.config),
      precision_(options.precision),
      isa_(std::min(options.isa, kernels::best_cpu_isa())),
      kernels_(kernels::decode_kernels(isa_)),
      cache_(cache_shape(config_, options.num_slots),
             options.precision == "fp32" ? Storage::kFloat32 : Storage::kBFloat16, isa_),
      slots_(config_, options.num_slots) {
  const at::NoGradGuard no_grad;
  pack_layers(weights);
  token_table_ = weights.at("tok_embeddings.weight");
  if (config_.model_type == "c2i") {
    class_table_ = weights.at("cls_embedding.embedding_table.weight");
  } else {
    uncond_caption_ = weights.at("cls_embedding.uncond_embedding").to(at::kFloat);
    fc1_ = weights.at("cls_embedding.cap_proj.fc1.weight").to(at::kFloat);
    fc2_ = weights.at("cls_embedding.cap_proj.fc2.weight").to(at::kFloat);
  }
  rope_SP2_ = nn::rotary_table_2d(config_.grid_size(), config_.head_dim(), config_.rope_base,
                                  config_.cls_token_num);
  const int64_t most_rows = std::max(options.num_slots, config_.cls_token_num);
  x_RC_.resize(most_rows * config_.dim);
  normed_RC_.resize(most_rows * config_.dim);
  mixed_RC_.resize(most_rows * config_.dim);
  qkv_.resize(most_rows * layers_.front().wqkv.out_features());
  gated_.resize(most_rows * config_.ffn_dim());
  rows_.reserve(most_rows);
  logits_ = at::zeros({options.num_slots, config_.vocab_size}, at::kFloat);
}

void GptCpuEngine::pack_layers(GptWeights& weights) {
  const Storage storage = weight_storage(precision_);
  const auto pack = [&](const std::string& name) {
    PackedLinear packed({weights.at(name)}, storage, isa_);
    weights.drop(name);
    return packed;
  };
  for (int64_t i = 0; i < config_.n_layer; ++i) {
    const std::string name = str_cat("layers.", i, ".");
    Layer layer;
    layer.attention_norm = as_floats(weights.at(name + "attention_norm.weight"));
    layer.ffn_norm = as_floats(weights.at(name + "ffn_norm.weight"));
    layer.wqkv = pack(name + "attention.wqkv.weight");
    layer.wo = pack(name + "attention.wo.weight");
    const std::string w1 = name + "feed_forward.w1.weight", w3 = name + "feed_forward.w3.weight";
    layer.w13 = PackedLinear::swiglu(weights.at(w1), weights.at(w3), storage, isa_);
    weights.drop(w1);
    weights.drop(w3);
    layer.w2 = pack(name + "feed_forward.w2.weight");
    layers_.push_back(std::move(layer));
  }
  norm_ = as_floats(weights.at("norm.weight"));
  output_ = pack("output.weight");
}

int64_t GptCpuEngine::weight_bytes() const {
  size_t sum = output_.size_bytes();
  for (const Layer& layer : layers_) {
    sum += layer.wqkv.size_bytes() + layer.wo.size_bytes() + layer.w13.size_bytes() +
           layer.w2.size_bytes();
  }
  return static_cast<int64_t>(sum);
}

// x_RC_ through all layers, for rows_.
void GptCpuEngine::run_layers() {
  const auto num_rows = static_cast<int64_t>(rows_.size());
  const int64_t dim = config_.dim;
  const auto epsilon = static_cast<float>(config_.norm_eps);
  const auto normalise = [&](const std::vector<float>& weight) {
    for (int64_t r = 0; r < num_rows; ++r) {
      kernels_.rms_norm(x_RC_.data() + r * dim, weight.data(), normed_RC_.data() + r * dim, dim,
                        epsilon);
    }
  };
  for (int64_t i = 0; i < config_.n_layer; ++i) {
    const Layer& layer = layers_[i];
    normalise(layer.attention_norm);
    layer.wqkv.forward(normed_RC_.data(), num_rows, qkv_.data(), scratch_);
    cache_.append(qkv_.data(), rows_, i, rope_SP2_.const_data_ptr<float>());
    cache_.attend(qkv_.data(), rows_, i, mixed_RC_.data());
    layer.wo.forward(mixed_RC_.data(), num_rows, x_RC_.data(), scratch_, kernels::Epilogue::kAdd);
    normalise(layer.ffn_norm);
    layer.w13.forward(normed_RC_.data(), num_rows, gated_.data(), scratch_);
    layer.w2.forward(gated_.data(), num_rows, x_RC_.data(), scratch_, kernels::Epilogue::kAdd);
  }
}

// Logits of the first num_rows rows of x_RC_.
void GptCpuEngine::write_logits(int64_t num_rows) {
  for (int64_t r = 0; r < num_rows; ++r) {
    kernels_.rms_norm(x_RC_.data() + r * config_.dim, norm_.data(),
                      normed_RC_.data() + r * config_.dim, config_.dim,
                      static_cast<float>(config_.norm_eps));
  }
  output_.forward(normed_RC_.data(), num_rows, logits_.mutable_data_ptr<float>(), scratch_);
}

const at::Tensor& GptCpuEngine::prefill(std::span<const GptPrompt> prompts) {
  slots_.start(prompts);
  if (config_.model_type == "t2i") {
    prefill_captions(prompts);
    return logits_;
  }
  rows_.clear();
  for (const GptPrompt& prompt : prompts) {
    copy_row(class_table_, prompt.is_null ? config_.num_classes : prompt.label,
             x_RC_.data() + rows_.size() * config_.dim);
    rows_.push_back({.slot = prompt.slot, .position = 0});
  }
  run_layers();
  write_logits(static_cast<int64_t>(prompts.size()));
  return logits_;
}

// One caption at a time: its rows fill the buffers.
void GptCpuEngine::prefill_captions(std::span<const GptPrompt> prompts) {
  const at::NoGradGuard no_grad;
  const int64_t dim = config_.dim, num_tokens = config_.cls_token_num;
  std::vector<float> last_RC;
  for (const GptPrompt& prompt : prompts) {
    const at::Tensor caption =
        prompt.is_null ? uncond_caption_ : prompt.caption.to(at::kFloat).cpu();
    const at::Tensor hidden = at::linear(at::gelu(at::linear(caption, fc1_), "tanh"), fc2_);
    std::copy_n(hidden.contiguous().const_data_ptr<float>(), num_tokens * dim, x_RC_.data());
    rows_.clear();
    for (int64_t t = 0; t < num_tokens; ++t) {
      rows_.push_back({.slot = prompt.slot, .position = t, .first = prompt.num_padding});
    }
    run_layers();
    const float* last = x_RC_.data() + (num_tokens - 1) * dim;
    last_RC.insert(last_RC.end(), last, last + dim);
  }
  std::copy(last_RC.begin(), last_RC.end(), x_RC_.begin());
  write_logits(static_cast<int64_t>(prompts.size()));
}

const at::Tensor& GptCpuEngine::decode(std::span<const GptStep> steps) {
  slots_.advance(steps);
  rows_.clear();
  for (const GptStep& step : steps) {
    copy_row(token_table_, step.token, x_RC_.data() + rows_.size() * config_.dim);
    rows_.push_back({.slot = step.slot,
                     .position = config_.cls_token_num + slots_.length(step.slot) - 1,
                     .first = slots_.first(step.slot)});
  }
  run_layers();
  write_logits(static_cast<int64_t>(steps.size()));
  return logits_;
}

void GptCpuEngine::sample(std::span<const GptChoice> choices, std::span<int64_t> tokens) {
  while (static_cast<int>(samplers_.size()) < at::get_num_threads()) {
    samplers_.emplace_back(config_.vocab_size, isa_);
  }
  const float* logits = logits_.const_data_ptr<float>();
  const auto row = [&](int64_t index) -> std::span<const float> {
    if (index < 0) return {};
    return {logits + index * config_.vocab_size, static_cast<size_t>(config_.vocab_size)};
  };
  at::parallel_for(0, static_cast<int64_t>(choices.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const GptChoice& choice = choices[i];
      Rng rng(choice.seed, Purpose::kSampling, static_cast<uint64_t>(choice.index), choice.image);
      tokens[i] = samplers_[at::get_thread_num()].sample(
          row(choice.row), row(choice.null_row), choice.cfg_scale, choice.filter, rng.uniform());
    }
  });
}

}  // namespace

std::unique_ptr<GptEngine> make_gpt_cpu_engine(GptWeights weights,
                                               const GptEngineOptions& options) {
  return std::make_unique<GptCpuEngine>(std::move(weights), options);
}

}  // namespace vgen::infer
