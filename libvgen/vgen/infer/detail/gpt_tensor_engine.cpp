// R rows of a step, one per slot; C = dim, H heads, K key heads, G = H / K, D head dim, P = D / 2,
// L positions, T condition tokens, V vocabulary, B choices.
#include "vgen/infer/detail/gpt_tensor_engine.h"

#include <torch/torch.h>

#include <algorithm>

#include "vgen/core/random.h"
#include "vgen/infer/detail/slots.h"
#include "vgen/infer/detail/step_graphs.h"
#include "vgen/kernels/cached_attention.h"
#include "vgen/nn/rms_norm.h"
#include "vgen/nn/rotary.h"
#include "vgen/nn/swiglu.h"
#include "vgen/tensor/device.h"

namespace vgen::infer {

namespace {

using torch::indexing::Slice;

struct Layer {
  at::Tensor attention_norm, ffn_norm;  // (C)
  at::Tensor wqkv, wo, w13, w2;         // as the checkpoint has them; w1 above w3
  at::Tensor key_RKLD, value_RKLD;      // the cache
};

// Steps run on the slots 0..R-1 for a few values of R, and, where attention is not one pass, read
// as many positions as one of a few lengths: so there are few graphs, and a short sequence does not
// read the whole cache.
constexpr int64_t kLengthStep = 64;

int64_t round_up_rows(int64_t rows, int64_t num_slots) {
  int64_t bucket = 1;
  while (bucket < rows) bucket *= 2;
  return std::min(bucket, num_slots);
}

// Numbers that the host hands to the device at every token: written in `host`, which is page-locked
// for a CUDA device, read from `device`.
struct Upload {
  Upload() = default;
  Upload(at::IntArrayRef shape, at::ScalarType dtype, c10::Device to)
      : host(at::zeros(shape, at::TensorOptions(dtype).pinned_memory(to.is_cuda()))),
        device(at::zeros(shape, at::TensorOptions(dtype).device(to))) {}
  /// Returns when `host` may be written again; without waiting that is once the device has got
  /// here.
  void send(bool is_waiting = true) { device.copy_(host, /*non_blocking=*/!is_waiting); }

  at::Tensor host, device;
};

// The rows of a choice in an Upload of doubles, one column per choice.
enum ChoiceField { kSlot, kNullSlot, kCfgScale, kInverseTemperature, kTopK, kTopP, kUniform };
constexpr int64_t kNumChoiceFields = 7;

// Removes what top-k, then top-p leave out. top_k_B1: float64 whole numbers from 1 to V.
at::Tensor filtered(const at::Tensor& logits_BV, const at::Tensor& top_k_B1,
                    const at::Tensor& top_p_B1) {
  const at::Tensor sorted_BV = std::get<0>(logits_BV.sort(-1, /*descending=*/true));
  const at::Tensor kth_B1 = sorted_BV.gather(1, top_k_B1.to(at::kLong) - 1);
  const at::Tensor kept_BV = sorted_BV.masked_fill(sorted_BV < kth_B1, -INFINITY);
  const at::Tensor probability_BV = kept_BV.softmax(-1, at::kDouble);
  // How many sorted tokens stay: the first, and all with at most p before them.
  const at::Tensor before_BV = probability_BV.cumsum(-1) - probability_BV;
  const at::Tensor is_in_BV = (before_BV <= top_p_B1).logical_and(kept_BV.isfinite());
  const at::Tensor last_B1 = is_in_BV.sum(-1, /*keepdim=*/true) - 1;
  return logits_BV.masked_fill(logits_BV < sorted_BV.gather(1, last_B1), -INFINITY);
}

// Where the rows of a step are, the same for all layers.
struct Places {
  at::Tensor slot_R, position_R, first_R;
  // Where attention is not one pass:
  at::Tensor rope_RP2 = {};   // of each row's position
  at::Tensor mask_R1GL = {};  // true = attended to
};

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
  void feed();
  void step(int64_t num_rows, int64_t length);
  at::Tensor attend(Layer& layer, const at::Tensor& x_RC, const Places& places);
  at::Tensor prefill_caption(const GptPrompt& prompt);
  const at::Tensor& collect();
  bool write_choices(std::span<const GptChoice> choices);

  gpt::GptConfig config_;
  c10::Device device_;
  c10::ScalarType dtype_;
  std::vector<Layer> layers_;
  at::Tensor table_, norm_, output_;       // table_: tokens, then classes
  at::Tensor uncond_caption_, fc1_, fc2_;  // t2i
  at::Tensor rope_LP2_;
  int64_t length_ = 0;         // positions of a slot; one more row of the cache takes idle writes
  bool has_one_pass_ = false;  // attention is kernels::cached_attention
  int64_t weight_bytes_ = 0;
  Slots slots_;
  std::unique_ptr<StepGraphs> graphs_;
  std::vector<int64_t> row_slot_, row_id_;  // of the last call: row i has a slot, an embedding row
  Upload input_3R_;                         // embedding row, position, first position, by slot
  Upload row_slot_R_;                       // row_slot_
  at::Tensor slot_R_, step_RV_;             // 0..R-1; logits by slot
  at::Tensor gathered_RV_;                  // logits by row, where that is another order
  Upload choices_7B_;                       // ChoiceField
  at::Tensor drawn_;  // on the host: tokens of the choices, then 1 if all logits are finite
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
  has_one_pass_ = kernels::has_cached_attention(layers_.front().key_RKLD);
  const auto on_device = at::TensorOptions(device_);
  row_slot_.reserve(options.num_slots);
  row_id_.reserve(options.num_slots);
  input_3R_ = Upload({3, options.num_slots}, at::kLong, device_);
  row_slot_R_ = Upload({options.num_slots}, at::kLong, device_);
  slot_R_ = at::arange(options.num_slots, on_device.dtype(at::kLong));
  step_RV_ = at::zeros({options.num_slots, config_.vocab_size}, on_device.dtype(at::kFloat));
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
  return at::linear(nn::swiglu(halves[0], halves[1]), layer.w2);
}

// Attention of one new position per row over those before it, or those of the mask.
at::Tensor GptTensorEngine::attend(Layer& layer, const at::Tensor& x_RC, const Places& places) {
  const at::Tensor qkv_RF = at::linear(normalised(x_RC, layer.attention_norm), layer.wqkv);
  if (has_one_pass_) {
    return at::linear(kernels::cached_attention({.qkv_RF = qkv_RF,
                                                 .rope_LP2 = rope_LP2_,
                                                 .slot_R = places.slot_R,
                                                 .position_R = places.position_R,
                                                 .first_R = places.first_R,
                                                 .key_SKLD = layer.key_RKLD,
                                                 .value_SKLD = layer.value_RKLD}),
                      layer.wo);
  }
  const int64_t R = x_RC.size(0), H = config_.n_head, K = config_.num_kv_heads();
  const int64_t length = places.mask_R1GL.size(3);
  const auto heads = qkv_RF.view({R, H + 2 * K, config_.head_dim()});
  // Rows take the place of positions: each turns by its own angle.
  const at::Tensor turned =
      nn::apply_rotary(heads.slice(1, 0, H + K).unsqueeze(0), places.rope_RP2).squeeze(0);
  layer.key_RKLD.index_put_({places.slot_R, Slice(), places.position_R}, turned.slice(1, H));
  layer.value_RKLD.index_put_({places.slot_R, Slice(), places.position_R}, heads.slice(1, H + K));
  // Queries that share keys are rows of one attention.
  const auto query_RKGD = turned.slice(1, 0, H).reshape({R, K, H / K, config_.head_dim()});
  const auto mixed = at::scaled_dot_product_attention(
      query_RKGD, layer.key_RKLD.slice(0, 0, R).slice(2, 0, length),
      layer.value_RKLD.slice(0, 0, R).slice(2, 0, length), places.mask_R1GL);
  return at::linear(mixed.reshape({R, config_.dim}), layer.wo);
}

// One position of the slots 0..num_rows-1; where attention is not one pass, the first `length`
// positions of the cache are read.
void GptTensorEngine::step(int64_t num_rows, int64_t length) {
  const auto input = [&](int64_t field) { return input_3R_.device[field].slice(0, 0, num_rows); };
  Places places{
      .slot_R = slot_R_.slice(0, 0, num_rows), .position_R = input(1), .first_R = input(2)};
  if (!has_one_pass_) {
    const at::Tensor& position_R = places.position_R;
    const at::Tensor first_R = at::minimum(places.first_R, position_R);
    const at::Tensor at_L = at::arange(length, position_R.options());
    const at::Tensor is_read_RL =
        (at_L <= position_R.unsqueeze(1)).logical_and(at_L >= first_R.unsqueeze(1));
    places.rope_RP2 = rope_LP2_.index_select(0, position_R);
    places.mask_R1GL = is_read_RL.view({num_rows, 1, 1, length})
                           .expand({num_rows, 1, config_.n_head / config_.num_kv_heads(), length});
  }
  at::Tensor x_RC = table_.index_select(0, input(0));
  for (Layer& layer : layers_) {
    x_RC = x_RC + attend(layer, x_RC, places);
    x_RC = x_RC + feed_forward(layer, x_RC);
  }
  step_RV_.slice(0, 0, num_rows).copy_(at::linear(normalised(x_RC, norm_), output_));
}

// Feeds row_id_ to row_slot_, each at the position of its slot.
void GptTensorEngine::feed() {
  const at::NoGradGuard no_grad;
  int64_t longest = 0, last_slot = 0;
  input_3R_.host.zero_();
  auto fields = input_3R_.host.accessor<int64_t, 2>();
  for (int64_t slot = 0; slot < slots_.size(); ++slot) fields[1][slot] = length_;
  for (size_t i = 0; i < row_slot_.size(); ++i) {
    const int64_t slot = row_slot_[i], used = slots_.length(slot);
    const int64_t position = used == 0 ? 0 : config_.cls_token_num + used - 1;
    fields[0][slot] = row_id_[i];
    fields[1][slot] = position;
    fields[2][slot] = slots_.first(slot);
    longest = std::max(longest, position + 1);
    last_slot = std::max(last_slot, slot);
  }
  input_3R_.send();
  const int64_t rows = round_up_rows(last_slot + 1, slots_.size());
  const int64_t rounded = (longest + kLengthStep - 1) / kLengthStep * kLengthStep;
  const int64_t length = has_one_pass_ ? length_ : std::min(rounded, length_);
  graphs_->run(rows * (length_ + 1) + length, [&] { step(rows, length); });
}

// Row i of the result is that of row_slot_[i].
const at::Tensor& GptTensorEngine::collect() {
  const at::NoGradGuard no_grad;
  const auto num_rows = static_cast<int64_t>(row_slot_.size());
  bool is_in_order = true;
  for (int64_t i = 0; i < num_rows; ++i) is_in_order = is_in_order && row_slot_[i] == i;
  if (is_in_order) return step_RV_;
  std::copy(row_slot_.begin(), row_slot_.end(), row_slot_R_.host.mutable_data_ptr<int64_t>());
  row_slot_R_.send();
  if (!gathered_RV_.defined()) gathered_RV_ = at::zeros_like(step_RV_);
  at::Tensor rows_RV = gathered_RV_.slice(0, 0, num_rows);
  at::index_select_out(rows_RV, step_RV_, 0, row_slot_R_.device.slice(0, 0, num_rows));
  return gathered_RV_;
}

const at::Tensor& GptTensorEngine::prefill(std::span<const GptPrompt> prompts) {
  const at::NoGradGuard no_grad;
  slots_.start(prompts);
  row_slot_.clear();
  row_id_.clear();
  for (const GptPrompt& prompt : prompts) {
    row_slot_.push_back(prompt.slot);
    if (config_.model_type == "t2i") {
      step_RV_[prompt.slot].copy_(prefill_caption(prompt));
    } else {
      row_id_.push_back(config_.vocab_size + (prompt.is_null ? config_.num_classes : prompt.label));
    }
  }
  if (config_.model_type == "c2i") feed();
  return collect();
}

// The condition tokens of one prompt. Returns the logits of the last one.
at::Tensor GptTensorEngine::prefill_caption(const GptPrompt& prompt) {
  const int64_t T = config_.cls_token_num, H = config_.n_head, K = config_.num_kv_heads();
  const at::Tensor caption = prompt.is_null ? uncond_caption_ : prompt.caption.to(device_, dtype_);
  at::Tensor x_1TC = at::linear(at::gelu(at::linear(caption, fc1_), "tanh"), fc2_).unsqueeze(0);
  const at::Tensor at_T = at::arange(T, slot_R_.options());
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
  row_slot_.clear();
  row_id_.clear();
  for (const GptStep& step : steps) {
    row_slot_.push_back(step.slot);
    row_id_.push_back(step.token);
  }
  feed();
  return collect();
}

// Into choices_7B_.host. Returns whether any of them is filtered.
bool GptTensorEngine::write_choices(std::span<const GptChoice> choices) {
  const auto count = static_cast<int64_t>(choices.size());
  if (!drawn_.defined() || drawn_.size(0) <= count) {
    const int64_t most = std::max(count, slots_.size());
    choices_7B_ = Upload({kNumChoiceFields, most}, at::kDouble, device_);
    drawn_ = at::zeros({most + 1}, at::TensorOptions(at::kLong).pinned_memory(device_.is_cuda()));
  }
  auto fields = choices_7B_.host.accessor<double, 2>();
  bool is_filtered = false;
  for (int64_t i = 0; i < count; ++i) {
    const GptChoice& choice = choices[i];
    const kernels::TokenFilter& filter = choice.filter;
    const bool is_guided = choice.null_row >= 0;
    Rng rng(choice.seed, Purpose::kSampling, static_cast<uint64_t>(choice.index), choice.image);
    const bool has_top_k = filter.top_k > 0 && filter.top_k < config_.vocab_size;
    TORCH_INTERNAL_ASSERT(std::max(choice.row, choice.null_row) < std::ssize(row_slot_));
    const int64_t slot = row_slot_[choice.row];
    fields[kSlot][i] = static_cast<double>(slot);
    fields[kNullSlot][i] = static_cast<double>(is_guided ? row_slot_[choice.null_row] : slot);
    fields[kCfgScale][i] = is_guided ? choice.cfg_scale : 1;
    fields[kInverseTemperature][i] = 1 / std::max(filter.temperature, 1e-5);
    fields[kTopK][i] = static_cast<double>(has_top_k ? filter.top_k : config_.vocab_size);
    fields[kTopP][i] = filter.is_greedy ? 0 : filter.top_p;
    fields[kUniform][i] = rng.uniform();
    is_filtered = is_filtered || has_top_k || filter.top_p < 1 || filter.is_greedy;
  }
  return is_filtered;
}

void GptTensorEngine::sample(std::span<const GptChoice> choices, std::span<int64_t> tokens) {
  const at::NoGradGuard no_grad;
  const auto count = static_cast<int64_t>(choices.size());
  const bool is_filtered = write_choices(choices);
  choices_7B_.send(/*is_waiting=*/false);  // the end of this function waits for the device
  const auto column = [&](ChoiceField field) {
    return choices_7B_.device[field].slice(0, 0, count).unsqueeze(1);  // (B, 1)
  };
  const auto logits_of = [&](ChoiceField field) {
    return step_RV_.index_select(0, column(field).squeeze(1).to(at::kLong));
  };
  const at::Tensor null_BV = logits_of(kNullSlot);
  at::Tensor guided_BV =
      (null_BV + (logits_of(kSlot) - null_BV) * column(kCfgScale).to(at::kFloat)) *
      column(kInverseTemperature).to(at::kFloat);
  const at::Tensor is_finite_1 = guided_BV.isfinite().all().to(at::kLong).view(1);
  if (is_filtered) guided_BV = filtered(guided_BV, column(kTopK), column(kTopP));
  const at::Tensor sum_BV = guided_BV.softmax(-1, at::kDouble).cumsum(-1);
  const at::Tensor target_B1 = column(kUniform) * sum_BV.slice(1, -1);
  const at::Tensor drawn_B = (sum_BV <= target_B1).sum(-1).clamp_max(config_.vocab_size - 1);
  drawn_.slice(0, 0, count + 1).copy_(at::cat({drawn_B, is_finite_1}));  // waits for the device
  const int64_t* drawn = drawn_.const_data_ptr<int64_t>();
  require(drawn[count] == 1, ErrorCode::kDataCorrupt,
          "the model's logits are not finite numbers: the checkpoint is damaged, or it needs "
          "another precision");
  std::copy_n(drawn, count, tokens.begin());
}

}  // namespace

std::unique_ptr<GptEngine> make_gpt_tensor_engine(GptWeights weights,
                                                  const GptEngineOptions& options) {
  return std::make_unique<GptTensorEngine>(std::move(weights), options);
}

}  // namespace vgen::infer
