#include "vgen/infer/var_engine.h"

#include <torch/torch.h>

#include <cmath>
#include <optional>

#include "vgen/kernels/packed_linear.h"
#include "vgen/tensor/device.h"

namespace vgen::infer {

namespace {

using kernels::Storage;

// y = x W^T + b: on our kernels, or LibTorch's.
struct Matrix {
  kernels::PackedLinear packed;
  kernels::LinearScratch* scratch = nullptr;  // the engine's
  at::Tensor weight;                          // defined: LibTorch's product, in its dtype
  at::Tensor bias;                            // float32; may be undefined

  int64_t size_bytes() const {
    return static_cast<int64_t>(weight.defined() ? weight.nbytes() : packed.size_bytes());
  }

  // x: float32, contiguous (..., K). Returns float32 (..., N).
  at::Tensor operator()(const at::Tensor& x) const {
    if (weight.defined()) {
      const at::Tensor y = at::linear(x.to(weight.scalar_type()), weight).to(at::kFloat);
      return bias.defined() ? y.add(bias) : y;
    }
    std::vector<int64_t> shape = x.sizes().vec();
    const int64_t num_rows = x.numel() / shape.back();
    shape.back() = packed.out_features();
    at::Tensor y = at::empty(shape, x.options());
    const at::Tensor rows = x.contiguous();
    packed.forward(rows.const_data_ptr<float>(), num_rows, y.mutable_data_ptr<float>(), *scratch);
    return bias.defined() ? y.add_(bias) : y;
  }
};

struct Block {
  Matrix ada, qkv, proj, fc1, fc2;
  at::Tensor ada_gss_6C;                   // shared adaLN
  at::Tensor query_scale_H11;              // attention between unit vectors
  at::Tensor key_SHLD, value_SHLD;         // the cache
  std::vector<at::Tensor> modulation_S1C;  // gates, scales, shifts of attention and FFN each
};

class VarEngineImpl : public VarEngine {
 public:
  VarEngineImpl(VarWeights weights, const VarEngineOptions& options);

  void start(const at::Tensor& label_S) override;
  at::Tensor run_scale(const at::Tensor& next_BPZ) override;

  const var::VarConfig& config() const override { return config_; }
  int64_t weight_bytes() const override { return weight_bytes_; }
  std::string description() const override {
    if (!use_own_kernels_) return str_cat(device_.str(), ", LibTorch, ", options_.precision);
    return str_cat("cpu, ", kernels::cpu_isa_name(isa_), ", ", options_.precision, " weights");
  }

 private:
  at::Tensor take(VarWeights& weights, const std::string& name) const;
  Matrix take_matrix(VarWeights& weights, const std::string& name, const at::Tensor& bias);
  Matrix take_linear(VarWeights& weights, const std::string& name);
  void take_block(VarWeights& weights, int64_t index);
  void reserve(int64_t num_sequences);
  void release_caches();
  at::Tensor embed(const at::Tensor& next_BPZ, int64_t first, int64_t last);
  at::Tensor modulated(const at::Tensor& x_SPC, const at::Tensor& scale_S1C,
                       const at::Tensor& shift_S1C) const;
  at::Tensor attend(Block& block, const at::Tensor& x_SPC, int64_t first, int64_t last);

  var::VarConfig config_;
  VarEngineOptions options_;
  c10::Device device_;
  bool use_own_kernels_;
  kernels::CpuIsa isa_;
  int64_t weight_bytes_ = 0;
  kernels::LinearScratch scratch_;
  at::Tensor class_table_, start_C, place_LC_, word_weight_CZ_, word_bias_C_;
  std::optional<Matrix> shared_ada_;
  std::vector<Block> blocks_;
  Matrix head_ada_, head_;
  double softmax_scale_ = 1;

  int64_t num_sequences_ = 0, scale_ = 0;
  at::Tensor class_SC_;
  std::vector<at::Tensor> head_modulation_S1C_;
};

VarEngineImpl::VarEngineImpl(VarWeights weights, const VarEngineOptions& options)
    : config_(weights.config),
      options_(options),
      device_(parse_device(options.device)),
      use_own_kernels_(device_.is_cpu() && options.use_own_kernels),
      isa_(std::min(options.isa, kernels::best_cpu_isa())) {
  require(use_own_kernels_ || options.precision != "int8", ErrorCode::kInvalidArgument,
          "precision int8 is there on the CPU alone; on ", device_.str(), " use bf16");
  const at::NoGradGuard no_grad;
  start_C = take(weights, "pos_start").flatten();
  const at::Tensor level_L = [&] {
    at::Tensor level = at::empty({config_.num_tokens()}, at::kLong);
    for (int64_t k = 0; k < config_.num_scales(); ++k) {
      level.slice(0, config_.scale_begin(k), config_.scale_end(k)).fill_(k);
    }
    return level.to(device_);
  }();
  place_LC_ =
      take(weights, "pos_1LC")[0] + take(weights, "lvl_embed.weight").index_select(0, level_L);
  class_table_ = take(weights, "class_emb.weight");
  word_weight_CZ_ = take(weights, "word_embed.weight");
  word_bias_C_ = take(weights, "word_embed.bias");
  if (config_.shared_adaln) shared_ada_ = take_linear(weights, "shared_ada_lin.1");
  const auto head_dim = static_cast<double>(config_.head_dim());
  // quirk: without unit vectors the scores are divided by 4 sqrt(D), not by sqrt(D).
  softmax_scale_ = config_.attn_l2_norm ? 1 : 0.25 / std::sqrt(head_dim);
  for (int64_t i = 0; i < config_.depth; ++i) take_block(weights, i);
  head_ada_ = take_linear(weights, "head_nm.ada_lin.1");
  head_ = take_linear(weights, "head");
  weight_bytes_ += head_.size_bytes();
}

// As float32 with memory of its own: the engine outlives what it is made of.
at::Tensor VarEngineImpl::take(VarWeights& weights, const std::string& name) const {
  at::Tensor tensor = weights.at(name).to(device_, at::kFloat);
  if (tensor.is_same(weights.at(name))) tensor = tensor.clone();
  weights.drop(name);
  return tensor;
}

Matrix VarEngineImpl::take_matrix(VarWeights& weights, const std::string& name,
                                  const at::Tensor& bias) {
  Matrix matrix;
  matrix.bias = bias;
  if (use_own_kernels_) {
    matrix.scratch = &scratch_;
    const Storage storage = options_.precision == "int8"   ? Storage::kInt8
                            : options_.precision == "bf16" ? Storage::kBFloat16
                                                           : Storage::kFloat32;
    matrix.packed =
        kernels::PackedLinear({weights.at(name)}, storage, isa_, kernels::Inputs::kRounded);
    weights.drop(name);
  } else {
    const auto dtype = options_.precision == "fp32" ? at::kFloat : at::kBFloat16;
    matrix.weight = take(weights, name).to(dtype);
  }
  return matrix;
}

Matrix VarEngineImpl::take_linear(VarWeights& weights, const std::string& name) {
  const at::Tensor bias = take(weights, name + ".bias");
  return take_matrix(weights, name + ".weight", bias);
}

void VarEngineImpl::take_block(VarWeights& weights, int64_t index) {
  const std::string name = str_cat("blocks.", index, ".");
  Block block;
  const at::Tensor query_bias = take(weights, name + "attn.q_bias");
  const at::Tensor bias =
      at::cat({query_bias, at::zeros_like(query_bias), take(weights, name + "attn.v_bias")});
  block.qkv = take_matrix(weights, name + "attn.mat_qkv.weight", bias);
  block.proj = take_linear(weights, name + "attn.proj");
  block.fc1 = take_linear(weights, name + "ffn.fc1");
  block.fc2 = take_linear(weights, name + "ffn.fc2");
  if (config_.shared_adaln) {
    block.ada_gss_6C = take(weights, name + "ada_gss").view({6, config_.width()});
  } else {
    block.ada = take_linear(weights, name + "ada_lin.1");
  }
  if (config_.attn_l2_norm) {
    block.query_scale_H11 = take(weights, name + "attn.scale_mul_1H11")
                                .view({config_.heads(), 1, 1})
                                .clamp_max(std::log(100.0))
                                .exp();
  }
  for (const Matrix* matrix : {&block.qkv, &block.proj, &block.fc1, &block.fc2}) {
    weight_bytes_ += matrix->size_bytes();
  }
  blocks_.push_back(std::move(block));
}

// Caches for so many sequences.
void VarEngineImpl::reserve(int64_t num_sequences) {
  const std::vector<int64_t> shape = {num_sequences, config_.heads(), config_.num_tokens(),
                                      config_.head_dim()};
  const auto dtype = use_own_kernels_ || options_.precision == "fp32" ? at::kFloat : at::kBFloat16;
  for (Block& block : blocks_) {
    block.key_SHLD = at::empty(shape, at::TensorOptions(device_).dtype(dtype));
    block.value_SHLD = at::empty_like(block.key_SHLD);
  }
}

// The decoder needs the memory next, and the allocator has it ready for the next drawing.
void VarEngineImpl::release_caches() {
  for (Block& block : blocks_) block.key_SHLD = block.value_SHLD = at::Tensor();
}

void VarEngineImpl::start(const at::Tensor& label_S) {
  const at::NoGradGuard no_grad;
  require(label_S.dim() == 1 && label_S.size(0) > 0 && label_S.scalar_type() == at::kLong,
          ErrorCode::kInvalidArgument, "var engine: expected int64 labels [S]");
  const int64_t low = label_S.min().item<int64_t>(), high = label_S.max().item<int64_t>();
  require(low >= 0 && high <= config_.num_classes, ErrorCode::kInvalidArgument,
          "var engine: class ", low < 0 ? low : high, ", expected 0 to ", config_.num_classes - 1,
          ", or ", config_.num_classes, " for none");
  num_sequences_ = label_S.size(0);
  scale_ = 0;
  reserve(num_sequences_);
  class_SC_ = class_table_.index_select(0, label_S.to(device_));
  const at::Tensor active_SC = at::silu(class_SC_);
  const int64_t width = config_.width();
  const auto parts = [&](const at::Tensor& all, int64_t count) {
    std::vector<at::Tensor> list;
    for (const at::Tensor& part : all.view({num_sequences_, count, width}).unbind(1)) {
      list.push_back(part.unsqueeze(1));
    }
    return list;
  };
  at::Tensor shared_S6C;
  if (shared_ada_) shared_S6C = (*shared_ada_)(active_SC).view({num_sequences_, 6, width});
  for (Block& block : blocks_) {
    block.modulation_S1C =
        parts(shared_ada_ ? (shared_S6C + block.ada_gss_6C) : block.ada(active_SC), 6);
  }
  head_modulation_S1C_ = parts(head_ada_(active_SC), 2);
}

at::Tensor VarEngineImpl::embed(const at::Tensor& next_BPZ, int64_t first, int64_t last) {
  const at::Tensor place_PC = place_LC_.slice(0, first, last);
  if (first == 0) return (class_SC_ + start_C).unsqueeze(1) + place_PC;
  const at::Tensor x_BPC =
      at::linear(next_BPZ.to(device_, at::kFloat), word_weight_CZ_, word_bias_C_) + place_PC;
  return x_BPC.repeat({num_sequences_ / next_BPZ.size(0), 1, 1});
}

at::Tensor VarEngineImpl::modulated(const at::Tensor& x_SPC, const at::Tensor& scale_S1C,
                                    const at::Tensor& shift_S1C) const {
  const at::Tensor normed = at::layer_norm(x_SPC, {config_.width()}, {}, {}, config_.norm_eps);
  return at::addcmul(shift_S1C, normed, scale_S1C + 1);
}

at::Tensor VarEngineImpl::attend(Block& block, const at::Tensor& x_SPC, int64_t first,
                                 int64_t last) {
  const int64_t heads = config_.heads(), size = last - first;
  // (S, P, 3, H, D) -> 3 of (S, H, P, D)
  const auto qkv = block.qkv(x_SPC)
                       .view({num_sequences_, size, 3, heads, config_.head_dim()})
                       .permute({2, 0, 3, 1, 4});
  at::Tensor query = qkv[0], key = qkv[1];
  if (config_.attn_l2_norm) {
    const auto unit = [](const at::Tensor& x) {
      return x / at::linalg_vector_norm(x, 2, {-1}, /*keepdim=*/true).clamp_min(1e-12);
    };
    query = unit(query) * block.query_scale_H11;
    key = unit(key);
  }
  block.key_SHLD.slice(2, first, last).copy_(key);
  block.value_SHLD.slice(2, first, last).copy_(qkv[2]);
  const at::Tensor mixed = at::scaled_dot_product_attention(
      query.to(block.key_SHLD.scalar_type()), block.key_SHLD.slice(2, 0, last),
      block.value_SHLD.slice(2, 0, last), {}, 0, false, softmax_scale_);
  return block.proj(
      mixed.transpose(1, 2).reshape({num_sequences_, size, config_.width()}).to(at::kFloat));
}

at::Tensor VarEngineImpl::run_scale(const at::Tensor& next_BPZ) {
  const at::NoGradGuard no_grad;
  require(num_sequences_ > 0 && scale_ < config_.num_scales(), ErrorCode::kInvalidArgument,
          "var engine: scale ", scale_, " of ", config_.num_scales(), " asked for; call start()");
  const int64_t first = config_.scale_begin(scale_), last = config_.scale_end(scale_);
  require(
      scale_ == 0 ||
          (next_BPZ.dim() == 3 && next_BPZ.size(0) > 0 && num_sequences_ % next_BPZ.size(0) == 0 &&
           next_BPZ.size(1) == last - first && next_BPZ.size(2) == config_.z_channels),
      ErrorCode::kInvalidArgument, "var engine: scale ", scale_, " got ",
      format_shape(next_BPZ.sizes().vec()), ", expected [B, ", last - first, ", ",
      config_.z_channels, "] for ", num_sequences_, " sequences");
  at::Tensor x_SPC = embed(next_BPZ, first, last);
  for (Block& block : blocks_) {
    const auto& m = block.modulation_S1C;
    x_SPC = at::addcmul(x_SPC, attend(block, modulated(x_SPC, m[2], m[4]), first, last), m[0]);
    const at::Tensor hidden = block.fc1(modulated(x_SPC, m[3], m[5]));
    x_SPC = at::addcmul(x_SPC, block.fc2(at::gelu(hidden, "tanh")), m[1]);
  }
  ++scale_;
  if (scale_ == config_.num_scales()) release_caches();
  return head_(modulated(x_SPC, head_modulation_S1C_[0], head_modulation_S1C_[1]));
}

}  // namespace

std::unique_ptr<VarEngine> make_var_engine(VarWeights weights, const VarEngineOptions& options) {
  require(options.precision == "fp32" || options.precision == "bf16" || options.precision == "int8",
          ErrorCode::kInvalidArgument, "precision '", printable(options.precision),
          "': expected fp32, bf16 or int8");
  return std::make_unique<VarEngineImpl>(std::move(weights), options);
}

}  // namespace vgen::infer
