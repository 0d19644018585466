// R rows of a step, one per slot; C = dim, H heads, K key heads, G = H / K, D head dim, P = D / 2,
// L positions, T condition tokens, V vocabulary.
#include "vgen/infer/detail/gpt_tensor_engine.h"

#include <torch/torch.h>

#include <algorithm>

#include "vgen/core/random.h"
#include "vgen/infer/detail/slots.h"
#include "vgen/infer/detail/step_graphs.h"
#include "vgen/nn/rms_norm.h"
#include "vgen/nn/rotary.h"
#include "vgen/tensor/device.h"

namespace vgen::infer {

namespace {

using torch::indexing::Slice;

struct Layer {
  at::Tensor attention_norm, ffn_norm;  // (C)
  at::Tensor wqkv, wo, w13, w2;         // as the checkpoint has them; w1 above w3
  at::Tensor key_RKLD, value_RKLD;      // the cache
};

// Steps run on the slots 0..R-1 for a few values of R, and read as many positions as one of a few
// lengths: so there are few graphs, and a short sequence does not read the whole cache.
constexpr int64_t kLengthStep = 64;

int64_t round_up_rows(int64_t rows, int64_t num_slots) {
  int64_t bucket = 1;
  while (bucket < rows) bucket *= 2;
  return std::min(bucket, num_slots);
}

class GptTensorEngine : public GptEngine {
 public:
  GptTensorEngine(GptWeights weights, const GptEngineOptions& options);

  const at::Tensor& prefill(std::span<const GptPrompt> prompts) override;
  const at::Tensor& decode(std::span<const GptStep> steps) override;
  void sample(std::span<const GptChoice> choices, std::span<int64_t> tokens) override;

  int64_t length(int64_t slot) const override { return slots_.length(slot); }
  const gpt::GptConfig& config() const override { return config_; }
  int64_t num_slots() const override { return slots_.size(); }
  int64_t weight_bytes() const override { return weight_bytes_; }
  std::string description() const override {
    return str_cat(device_.str(), graphs_->has_graphs() ? ", CUDA graphs, " : ", LibTorch, ",
                   precision_name(dtype_));
  }

 private:
  at::Tensor take(GptWeights& weights, const std::string& name) const;
  void take_layers(GptWeights& weights);
  at::Tensor normalised(const at::Tensor& x, const at::Tensor& weight) const;
  at::Tensor feed_forward(const Layer& layer, const at::Tensor& x) const;
  /// Feeds embedding row id to slot, at its position, for all given slots.
  void feed(const std::vector<int64_t>& slots, const std::vector<int64_t>& ids);
  void step(int64_t num_rows, int64_t length);
  at::Tensor attend(Layer& layer, const at::Tensor& x_RC, int64_t length);
  at::Tensor prefill_caption(const GptPrompt& prompt);
  const at::Tensor& collect(const std::vector<int64_t>& slots);

  gpt::GptConfig config_;
  c10::Device device_;
  c10::ScalarType dtype_;
  std::vector<Layer> layers_;
  at::Tensor table_, norm_, output_;       // table_: tokens, then classes
  at::Tensor uncond_caption_, fc1_, fc2_;  // t2i
  at::Tensor rope_LP2_;
  int64_t length_ = 0;  // positions of a slot; one more row of the cache takes idle writes
  int64_t weight_bytes_ = 0;
  Slots slots_;
  std::unique_ptr<StepGraphs> graphs_;
  at::Tensor input_3R_;          // embedding row, position, first position; on the device
  at::Tensor slot_R_, step_RV_;  // 0..R-1; logits by slot
  at::Tensor logits_;            // logits by row
};

GptTensorEngine::GptTensorEngine(GptWeights weights, const GptEngineOptions& options)
    : config_(weights.config),
      device_(parse_device(options.device)),
      dtype_(options.precision == "fp32" ? at::kFloat : at::kBFloat16),
      length_(weights.config.cls_token_num + weights.config.block_size),
      slots_(weights.config, options.num_slots),
      graphs_(make_step_graphs(device_)) {
  require(options.precision != "int8", ErrorCode::kInvalidArgument,
          "precision int8 is there on the CPU alone; on ", device_.str(), " use bf16");
  const at::NoGradGuard no_grad;
  take_layers(weights);
  table_ = take(weights, "tok_embeddings.weight");
  if (config_.model_type == "c2i") {
    table_ = at::cat({table_, take(weights, "cls_embedding.embedding_table.weight")});
  } else {
    uncond_caption_ = take(weights, "cls_embedding.uncond_embedding");
    fc1_ = take(weights, "cls_embedding.cap_proj.fc1.weight");
    fc2_ = take(weights, "cls_embedding.cap_proj.fc2.weight");
  }
  norm_ = take(weights, "norm.weight");
  output_ = take(weights, "output.weight");
  weight_bytes_ += static_cast<int64_t>(output_.nbytes());
  // The row for idle writes turns by nothing.
  rope_LP2_ = at::constant_pad_nd(nn::rotary_table_2d(config_.grid_size(), config_.head_dim(),
                                                      config_.rope_base, config_.cls_token_num),
                                  {0, 0, 0, 0, 0, 1})
                  .to(device_);
  const auto on_device = at::TensorOptions(device_);
  input_3R_ = at::zeros({3, options.num_slots}, on_device.dtype(at::kLong));
  slot_R_ = at::arange(options.num_slots, on_device.dtype(at::kLong));
  step_RV_ = at::zeros({options.num_slots, config_.vocab_size}, on_device.dtype(at::kFloat));
  logits_ = step_RV_;
}

at::Tensor GptTensorEngine::take(GptWeights& weights, const std::string& name) const {
  at::Tensor tensor = weights.at(name).to(device_, dtype_);
  // Never the mapped file itself: the engine outlives what it is made of.
  if (tensor.is_same(weights.at(name))) tensor = tensor.clone();
  weights.drop(name);
  return tensor;
}

void GptTensorEngine::take_layers(GptWeights& weights) {
  const auto options = at::TensorOptions(device_).dtype(dtype_);
  const std::vector<int64_t> cache_shape = {slots_.size(), config_.num_kv_heads(), length_ + 1,
                                            config_.head_dim()};
  for (int64_t i = 0; i < config_.n_layer; ++i) {
    const std::string name = str_cat("layers.", i, ".");
    Layer layer;
    layer.attention_norm = take(weights, name + "attention_norm.weight");
    layer.ffn_norm = take(weights, name + "ffn_norm.weight");
    layer.wqkv = take(weights, name + "attention.wqkv.weight");
    layer.wo = take(weights, name + "attention.wo.weight");
    layer.w13 = at::cat({take(weights, name + "feed_forward.w1.weight"),
                         take(weights, name + "feed_forward.w3.weight")});
    layer.w2 = take(weights, name + "feed_forward.w2.weight");
    layer.key_RKLD = at::zeros(cache_shape, options);
    layer.value_RKLD = at::zeros(cache_shape, options);
    for (const at::Tensor& weight : {layer.wqkv, layer.wo, layer.w13, layer.w2}) {
      weight_bytes_ += static_cast<int64_t>(weight.nbytes());
    }
    layers_.push_back(std::move(layer));
  }
}

at::Tensor GptTensorEngine::normalised(const at::Tensor& x, const at::Tensor& weight) const {
  return nn::rms_norm(x, weight, config_.norm_eps);
}

at::Tensor GptTensorEngine::feed_forward(const Layer& layer, const at::Tensor& x) const {
  const auto halves = at::linear(normalised(x, layer.ffn_norm), layer.w13).chunk(2, -1);
  return at::linear(at::silu(halves[0]) * halves[1], layer.w2);
}

// Attention of one new position per row; `length` positions of the cache are read.
at::Tensor GptTensorEngine::attend(Layer& layer, const at::Tensor& x_RC, int64_t length) {
  const int64_t R = x_RC.size(0), H = config_.n_head, K = config_.num_kv_heads();
  const at::Tensor position_R = input_3R_[1].slice(0, 0, R);
  const at::Tensor first_R = input_3R_[2].slice(0, 0, R);
  const auto heads = at::linear(normalised(x_RC, layer.attention_norm), layer.wqkv)
                         .view({R, H + 2 * K, config_.head_dim()});
  // Rows take the place of positions: each turns by its own angle.
  const at::Tensor turned =
      nn::apply_rotary(heads.slice(1, 0, H + K).unsqueeze(0), rope_LP2_.index_select(0, position_R))
          .squeeze(0);
  const at::Tensor slot_R = slot_R_.slice(0, 0, R);
  layer.key_RKLD.index_put_({slot_R, Slice(), position_R}, turned.slice(1, H));
  layer.value_RKLD.index_put_({slot_R, Slice(), position_R}, heads.slice(1, H + K));
  // Queries that share keys are rows of one attention.
  const auto query_RKGD = turned.slice(1, 0, H).reshape({R, K, H / K, config_.head_dim()});
  const at::Tensor at_L = at::arange(length, position_R.options());
  const at::Tensor mask_R11L =
      (at_L <= position_R.unsqueeze(1))
          .logical_and(at_L >= at::minimum(first_R, position_R).unsqueeze(1))
          .view({R, 1, 1, length});
  const auto mixed = at::scaled_dot_product_attention(
      query_RKGD, layer.key_RKLD.slice(0, 0, R).slice(2, 0, length),
      layer.value_RKLD.slice(0, 0, R).slice(2, 0, length), mask_R11L.expand({R, 1, H / K, length}));
  return at::linear(mixed.reshape({R, config_.dim}), layer.wo);
}

void GptTensorEngine::step(int64_t num_rows, int64_t length) {
  at::Tensor x_RC = table_.index_select(0, input_3R_[0].slice(0, 0, num_rows));
  for (Layer& layer : layers_) {
    x_RC = x_RC + attend(layer, x_RC, length);
    x_RC = x_RC + feed_forward(layer, x_RC);
  }
  step_RV_.slice(0, 0, num_rows).copy_(at::linear(normalised(x_RC, norm_), output_));
}

void GptTensorEngine::feed(const std::vector<int64_t>& slots, const std::vector<int64_t>& ids) {
  const at::NoGradGuard no_grad;
  int64_t longest = 0, last_slot = 0;
  at::Tensor input = at::zeros({3, slots_.size()}, at::kLong);
  auto fields = input.accessor<int64_t, 2>();
  for (int64_t slot = 0; slot < slots_.size(); ++slot) fields[1][slot] = length_;
  for (size_t i = 0; i < slots.size(); ++i) {
    const int64_t slot = slots[i], used = slots_.length(slot);
    const int64_t position = used == 0 ? 0 : config_.cls_token_num + used - 1;
    fields[0][slot] = ids[i];
    fields[1][slot] = position;
    fields[2][slot] = slots_.first(slot);
    longest = std::max(longest, position + 1);
    last_slot = std::max(last_slot, slot);
  }
  input_3R_.copy_(input);
  const int64_t rows = round_up_rows(last_slot + 1, slots_.size());
  const int64_t length = std::min((longest + kLengthStep - 1) / kLengthStep * kLengthStep, length_);
  graphs_->run(rows * (length_ + 1) + length, [&] { step(rows, length); });
}

// Row i of the result is that of slots[i].
const at::Tensor& GptTensorEngine::collect(const std::vector<int64_t>& slots) {
  bool is_in_order = true;
  for (size_t i = 0; i < slots.size(); ++i) {
    is_in_order = is_in_order && slots[i] == static_cast<int64_t>(i);
  }
  logits_ =
      is_in_order ? step_RV_ : step_RV_.index_select(0, at::tensor(slots, at::kLong).to(device_));
  return logits_;
}

const at::Tensor& GptTensorEngine::prefill(std::span<const GptPrompt> prompts) {
  const at::NoGradGuard no_grad;
  slots_.start(prompts);
  std::vector<int64_t> slots, ids;
  for (const GptPrompt& prompt : prompts) {
    slots.push_back(prompt.slot);
    if (config_.model_type == "t2i") {
      step_RV_[prompt.slot].copy_(prefill_caption(prompt));
    } else {
      ids.push_back(config_.vocab_size + (prompt.is_null ? config_.num_classes : prompt.label));
    }
  }
  if (config_.model_type == "c2i") feed(slots, ids);
  return collect(slots);
}

// The condition tokens of one prompt. Returns the logits of the last one.
at::Tensor GptTensorEngine::prefill_caption(const GptPrompt& prompt) {
  const int64_t T = config_.cls_token_num, H = config_.n_head, K = config_.num_kv_heads();
  const at::Tensor caption = prompt.is_null ? uncond_caption_ : prompt.caption.to(device_, dtype_);
  at::Tensor x_1TC = at::linear(at::gelu(at::linear(caption, fc1_), "tanh"), fc2_).unsqueeze(0);
  const at::Tensor at_T = at::arange(T, input_3R_.options());
  const at::Tensor mask_TT = (at_T.unsqueeze(0) <= at_T.unsqueeze(1))
                                 .logical_and(at_T.unsqueeze(0) >= prompt.num_padding)
                                 .logical_or(at::eye(T, at_T.options().dtype(at::kBool)));
  for (Layer& layer : layers_) {
    const auto heads = at::linear(normalised(x_1TC, layer.attention_norm), layer.wqkv)
                           .view({1, T, H + 2 * K, config_.head_dim()});
    const at::Tensor turned =
        nn::apply_rotary(heads.slice(2, 0, H + K), rope_LP2_.slice(0, 0, T)).transpose(1, 2);
    const at::Tensor value_1KTD = heads.slice(2, H + K).transpose(1, 2);
    layer.key_RKLD[prompt.slot].slice(1, 0, T).copy_(turned[0].slice(0, H));
    layer.value_RKLD[prompt.slot].slice(1, 0, T).copy_(value_1KTD[0]);
    const auto mixed = at::scaled_dot_product_attention(
        turned.slice(1, 0, H), turned.slice(1, H).repeat_interleave(H / K, 1),
        value_1KTD.repeat_interleave(H / K, 1), mask_TT.view({1, 1, T, T}));
    x_1TC = x_1TC + at::linear(mixed.transpose(1, 2).reshape({1, T, config_.dim}), layer.wo);
    x_1TC = x_1TC + feed_forward(layer, x_1TC);
  }
  return at::linear(normalised(x_1TC[0][T - 1], norm_), output_);
}

const at::Tensor& GptTensorEngine::decode(std::span<const GptStep> steps) {
  slots_.advance(steps);
  std::vector<int64_t> slots, ids;
  for (const GptStep& step : steps) {
    slots.push_back(step.slot);
    ids.push_back(step.token);
  }
  feed(slots, ids);
  return collect(slots);
}

void GptTensorEngine::sample(std::span<const GptChoice> choices, std::span<int64_t> tokens) {
  const at::NoGradGuard no_grad;
  const auto count = static_cast<int64_t>(choices.size());
  at::Tensor number = at::zeros({7, count}, at::kDouble);
  auto fields = number.accessor<double, 2>();
  bool is_filtered = false;
  for (int64_t i = 0; i < count; ++i) {
    const GptChoice& choice = choices[i];
    const bool is_guided = choice.null_row >= 0;
    Rng rng(choice.seed, Purpose::kSampling, static_cast<uint64_t>(choice.index), choice.image);
    const bool has_top_k = choice.filter.top_k > 0 && choice.filter.top_k < config_.vocab_size;
    const double values[7] = {
        static_cast<double>(choice.row),
        static_cast<double>(is_guided ? choice.null_row : choice.row),
        is_guided ? choice.cfg_scale : 1,
        1 / std::max(choice.filter.temperature, 1e-5),
        static_cast<double>(has_top_k ? choice.filter.top_k : config_.vocab_size),
        choice.filter.is_greedy ? 0 : choice.filter.top_p,
        rng.uniform()};
    for (int64_t f = 0; f < 7; ++f) fields[f][i] = values[f];
    is_filtered = is_filtered || has_top_k || choice.filter.top_p < 1 || choice.filter.is_greedy;
  }
  number = number.to(device_);
  const auto column = [&](int64_t f) { return number[f].unsqueeze(1); };
  const at::Tensor null_BV = logits_.index_select(0, number[1].to(at::kLong));
  const at::Tensor conditional_BV = logits_.index_select(0, number[0].to(at::kLong));
  at::Tensor guided_BV =
      (null_BV + (conditional_BV - null_BV) * column(2).to(at::kFloat)) * column(3).to(at::kFloat);
  const at::Tensor is_finite = guided_BV.isfinite().all();
  if (is_filtered) {
    const at::Tensor sorted_BV = std::get<0>(guided_BV.sort(-1, /*descending=*/true));
    const at::Tensor kth_B1 = sorted_BV.gather(1, column(4).to(at::kLong) - 1);
    const at::Tensor kept_BV = sorted_BV.masked_fill(sorted_BV < kth_B1, -INFINITY);
    const at::Tensor probability_BV = kept_BV.softmax(-1, at::kDouble);
    // How many sorted tokens stay: the first, and all with at most p before them.
    const at::Tensor before_BV = probability_BV.cumsum(-1) - probability_BV;
    const at::Tensor is_in_BV = (before_BV <= column(5)).logical_and(kept_BV.isfinite());
    const at::Tensor last_B1 = is_in_BV.sum(-1, /*keepdim=*/true) - 1;
    guided_BV = guided_BV.masked_fill(guided_BV < sorted_BV.gather(1, last_B1), -INFINITY);
  }
  const at::Tensor sum_BV = guided_BV.softmax(-1, at::kDouble).cumsum(-1);
  const at::Tensor target_B1 = column(6) * sum_BV.slice(1, -1);
  const at::Tensor drawn_B = (sum_BV <= target_B1).sum(-1).clamp_max(config_.vocab_size - 1);
  const at::Tensor result = at::cat({drawn_B, is_finite.to(at::kLong).view(1)}).cpu();
  require(result[count].item<int64_t>() == 1, ErrorCode::kDataCorrupt,
          "the model's logits are not finite numbers: the checkpoint is damaged, or it needs "
          "another precision");
  std::copy_n(result.const_data_ptr<int64_t>(), count, tokens.begin());
}

}  // namespace

std::unique_ptr<GptEngine> make_gpt_tensor_engine(GptWeights weights,
                                                  const GptEngineOptions& options) {
  return std::make_unique<GptTensorEngine>(std::move(weights), options);
}

}  // namespace vgen::infer
