#include "vgen/infer/var_engine.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <cmath>
#include <optional>

#include "vgen/kernels/packed_linear.h"
#include "vgen/nn/adaln.h"
#include "vgen/nn/unit_heads.h"
#include "vgen/tensor/autocast.h"
#include "vgen/tensor/device.h"

namespace vgen::infer {

namespace {

using kernels::Epilogue;
using kernels::Storage;

constexpr int64_t kRowsPerTask = 8;  // that are worth a thread

// y = x W^T + b: on our kernels, or LibTorch's.
struct Matrix {
  kernels::PackedLinear packed;               // with its bias
  kernels::LinearScratch* scratch = nullptr;  // the engine's
  at::Tensor weight;                          // defined: LibTorch's product, in its dtype
  at::Tensor bias;                            // LibTorch's, of that dtype; may be undefined

  int64_t size_bytes() const {
    return static_cast<int64_t>(weight.defined() ? weight.nbytes() : packed.size_bytes());
  }

  // x (..., K) to (..., N): ours float32, contiguous; LibTorch's x of any dtype, the result of the
  // weight's.
  at::Tensor operator()(const at::Tensor& x) const {
    return weight.defined() ? product(x) : run(x, Epilogue::kStore);
  }
  at::Tensor gelu(const at::Tensor& x) const {
    return weight.defined() ? at::gelu(product(x), "tanh") : run(x, Epilogue::kGelu);
  }
  // sum_SPN += gate_S1N y; the sum is float32.
  void add_gated(const at::Tensor& x_SPK, const at::Tensor& gate_S1N, at::Tensor& sum_SPN) const {
    if (weight.defined()) {
      sum_SPN = nn::gated_sum(sum_SPN, product(x_SPK), gate_S1N);
      return;
    }
    const kernels::Gate gate{.values = gate_S1N.const_data_ptr<float>(),
                             .stride = gate_S1N.stride(0),
                             .rows = x_SPK.size(1)};
    forward(x_SPK, sum_SPN, Epilogue::kAddGated, gate);
  }

 private:
  at::Tensor product(const at::Tensor& x) const {
    return at::linear(x.to(weight.scalar_type()), weight, bias);
  }
  at::Tensor run(const at::Tensor& x, Epilogue epilogue) const {
    std::vector<int64_t> shape = x.sizes().vec();
    shape.back() = packed.out_features();
    at::Tensor y = at::empty(shape, x.options());
    forward(x, y, epilogue, {});
    return y;
  }
  void forward(const at::Tensor& x, at::Tensor& y, Epilogue epilogue,
               const kernels::Gate& gate) const {
    const at::Tensor rows = x.contiguous();
    packed.forward(rows.const_data_ptr<float>(), x.numel() / x.size(-1),
                   y.mutable_data_ptr<float>(), *scratch, epilogue, gate);
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
  at::ScalarType cache_dtype() const;
  at::Tensor embed(const at::Tensor& next_BPZ, int64_t first, int64_t last);
  at::Tensor modulated(const at::Tensor& x_SPC, const at::Tensor& scale_S1C,
                       const at::Tensor& shift_S1C) const;
  at::Tensor split_heads(Block& block, const at::Tensor& qkv_SPW, int64_t first);
  at::Tensor attend(Block& block, const at::Tensor& x_SPC, int64_t first, int64_t last);

  var::VarConfig config_;
  VarEngineOptions options_;
  c10::Device device_;
  bool use_own_kernels_;
  kernels::CpuIsa isa_;
  const kernels::DecodeKernels& kernels_;
  int64_t weight_bytes_ = 0;
  kernels::LinearScratch scratch_;
  at::Tensor class_table_, start_PC_, place_LC_, word_weight_CZ_, word_bias_C_;
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
      isa_(std::min(options.isa, kernels::best_cpu_isa())),
      kernels_(kernels::decode_kernels(isa_)) {
  require(use_own_kernels_ || options.precision != "int8", ErrorCode::kInvalidArgument,
          "precision int8 is there on the CPU alone; on ", device_.str(), " use bf16");
  const at::NoGradGuard no_grad;
  start_PC_ = take(weights, "pos_start")[0];
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
  if (use_own_kernels_) {
    matrix.scratch = &scratch_;
    const Storage storage = options_.precision == "int8"   ? Storage::kInt8
                            : options_.precision == "bf16" ? Storage::kBFloat16
                                                           : Storage::kFloat32;
    matrix.packed =
        kernels::PackedLinear({weights.at(name)}, storage, isa_, kernels::Inputs::kRounded);
    matrix.packed.set_bias(bias);
    weights.drop(name);
  } else {
    const auto dtype = options_.precision == "fp32" ? at::kFloat : at::kBFloat16;
    matrix.bias = bias.to(dtype);
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

// What attention is done in: without AMX ours are products of float32.
at::ScalarType VarEngineImpl::cache_dtype() const {
  const bool is_narrow =
      options_.precision == "bf16" && (!use_own_kernels_ || isa_ >= kernels::CpuIsa::kAmx);
  return is_narrow ? at::kBFloat16 : at::kFloat;
}

// Caches for so many sequences.
void VarEngineImpl::reserve(int64_t num_sequences) {
  const std::vector<int64_t> shape = {num_sequences, config_.heads(), config_.num_tokens(),
                                      config_.head_dim()};
  for (Block& block : blocks_) {
    block.key_SHLD = at::empty(shape, at::TensorOptions(device_).dtype(cache_dtype()));
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
  if (first == 0) return class_SC_.unsqueeze(1) + start_PC_ + place_PC;  // (S, P, C)
  const at::Tensor x_BPC =
      at::linear(next_BPZ.to(device_, at::kFloat), word_weight_CZ_, word_bias_C_) + place_PC;
  return x_BPC.repeat({num_sequences_ / next_BPZ.size(0), 1, 1});
}

at::Tensor VarEngineImpl::modulated(const at::Tensor& x_SPC, const at::Tensor& scale_S1C,
                                    const at::Tensor& shift_S1C) const {
  if (!use_own_kernels_) {
    return nn::modulated_norm(x_SPC, scale_S1C, shift_S1C, config_.norm_eps);
  }
  at::Tensor out_SPC = at::empty_like(x_SPC);
  const int64_t width = config_.width(), size = x_SPC.size(1);
  const float* x = x_SPC.const_data_ptr<float>();
  const float* scale = scale_S1C.const_data_ptr<float>();
  const float* shift = shift_S1C.const_data_ptr<float>();
  auto* out = out_SPC.mutable_data_ptr<float>();
  const int64_t scale_stride = scale_S1C.stride(0), shift_stride = shift_S1C.stride(0);
  at::parallel_for(0, num_sequences_ * size, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernels_.modulated_norm(x + row * width, scale + row / size * scale_stride,
                              shift + row / size * shift_stride, out + row * width, width,
                              static_cast<float>(config_.norm_eps));
    }
  });
  return out_SPC;
}

// Keys and values of a scale into the caches. Returns the queries (S, H, P, D), in their dtype.
at::Tensor VarEngineImpl::split_heads(Block& block, const at::Tensor& qkv_SPW, int64_t first) {
  const int64_t heads = config_.heads(), size = qkv_SPW.size(1), head_dim = config_.head_dim();
  const int64_t last = first + size;
  if (!use_own_kernels_) {
    const auto qkv_SP3HD = qkv_SPW.view({num_sequences_, size, 3, heads, head_dim});
    nn::Heads parts{qkv_SP3HD.select(2, 0), qkv_SP3HD.select(2, 1), qkv_SP3HD.select(2, 2)};
    if (config_.attn_l2_norm) parts = nn::unit_heads(qkv_SP3HD, block.query_scale_H11.flatten());
    block.key_SHLD.slice(2, first, last).copy_(parts.key_BLHD.transpose(1, 2));
    block.value_SHLD.slice(2, first, last).copy_(parts.value_BLHD.transpose(1, 2));
    return parts.query_BLHD.transpose(1, 2);
  }
  at::Tensor query_SHPD =
      at::empty({num_sequences_, heads, size, head_dim}, block.key_SHLD.options());
  const auto storage =
      block.key_SHLD.scalar_type() == at::kFloat ? Storage::kFloat32 : Storage::kBFloat16;
  const int64_t item = storage == Storage::kFloat32 ? 4 : 2;
  const float* const qkv = qkv_SPW.const_data_ptr<float>();
  const float* const query_scale =
      config_.attn_l2_norm ? block.query_scale_H11.const_data_ptr<float>() : nullptr;
  const auto bytes_of = [](const at::Tensor& tensor) {
    return static_cast<std::byte*>(tensor.mutable_data_ptr());
  };
  std::byte* const query = bytes_of(query_SHPD);
  std::byte* const key = bytes_of(block.key_SHLD);
  std::byte* const value = bytes_of(block.value_SHLD);
  at::parallel_for(0, num_sequences_ * size, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t s = row / size, p = row % size;
      for (int64_t h = 0; h < heads; ++h) {
        const float* const from = qkv + (row * 3 * heads + h) * head_dim;
        const auto put = [&](int64_t part, std::byte* to, int64_t place, float length) {
          kernels_.store_head(from + part * heads * head_dim, to + place * head_dim * item,
                              head_dim, length, storage);
        };
        const int64_t head = s * heads + h, cached = head * config_.num_tokens() + first + p;
        put(0, query, head * size + p, query_scale == nullptr ? 0 : query_scale[h]);
        put(1, key, cached, query_scale == nullptr ? 0 : 1);
        put(2, value, cached, 0);
      }
    }
  });
  return query_SHPD;
}

// The mixed values (S, P, C): float32, or of the dtype of LibTorch's products.
at::Tensor VarEngineImpl::attend(Block& block, const at::Tensor& x_SPC, int64_t first,
                                 int64_t last) {
  const at::Tensor query_SHPD = split_heads(block, block.qkv(x_SPC), first);
  const at::Tensor mixed_SHPD = at::scaled_dot_product_attention(
      query_SHPD, block.key_SHLD.slice(2, 0, last), block.value_SHLD.slice(2, 0, last), {}, 0,
      false, softmax_scale_);
  const at::Tensor mixed_SPC =
      mixed_SHPD.transpose(1, 2).reshape({num_sequences_, last - first, config_.width()});
  return use_own_kernels_ ? mixed_SPC.to(at::kFloat) : mixed_SPC;
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
  // So that norms give what LibTorch's products take.
  const Autocast autocast(device_, use_own_kernels_ ? at::kFloat : cache_dtype());
  for (Block& block : blocks_) {
    const auto& m = block.modulation_S1C;
    block.proj.add_gated(attend(block, modulated(x_SPC, m[2], m[4]), first, last), m[0], x_SPC);
    block.fc2.add_gated(block.fc1.gelu(modulated(x_SPC, m[3], m[5])), m[1], x_SPC);
  }
  ++scale_;
  if (scale_ == config_.num_scales()) release_caches();
  return head_(modulated(x_SPC, head_modulation_S1C_[0], head_modulation_S1C_[1])).to(at::kFloat);
}

}  // namespace

std::unique_ptr<VarEngine> make_var_engine(VarWeights weights, const VarEngineOptions& options) {
  require(options.precision == "fp32" || options.precision == "bf16" || options.precision == "int8",
          ErrorCode::kInvalidArgument, "precision '", printable(options.precision),
          "': expected fp32, bf16 or int8");
  return std::make_unique<VarEngineImpl>(std::move(weights), options);
}

}  // namespace vgen::infer
