#include "vgen/infer/load_tokenizer.h"

#include <filesystem>
#include <optional>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/config.h"
#include "vgen/core/log.h"
#include "vgen/infer/find_weights.h"
#include "vgen/infer/fingerprint.h"
#include "vgen/infer/model_weights.h"
#include "vgen/infer/multi_scale_config.h"
#include "vgen/infer/multi_scale_tokenizer.h"
#include "vgen/infer/vqgan_config.h"
#include "vgen/nn/conv2d.h"
#include "vgen/nn/skip_init.h"
#include "vgen/tensor/device.h"
#include "vgen/tokenizer/vqgan.h"

namespace vgen::infer {
namespace {

namespace fs = std::filesystem;
using tokenizer::VqganConfig;

constexpr const char* kUsage = "quantize.ema_vocab_hit_SV";

class VqganTokenizer : public ImageTokenizer {
 public:
  explicit VqganTokenizer(tokenizer::Vqgan model, c10::Device device)
      : model_(std::move(model)), device_(device) {}

  at::Tensor encode(const at::Tensor& image_B3HW) const override {
    const torch::NoGradGuard no_grad;
    const auto quantized = model_.ptr()->encode(image_B3HW.to(device_));
    const int64_t factor = downsample();
    return quantized.index_N.view(
        {image_B3HW.size(0), image_B3HW.size(2) / factor, image_B3HW.size(3) / factor});
  }

  at::Tensor decode(const at::Tensor& code, int64_t height, int64_t width) const override {
    const torch::NoGradGuard no_grad;
    const auto shape = code_shape(height, width);
    require(code.dim() >= 1, ErrorCode::kInvalidArgument, "tokenizer: expected codes (B, ...)");
    const int64_t expected = code.size(0) * shape[0] * shape[1];
    require(code.numel() == expected && expected > 0, ErrorCode::kInvalidArgument,
            "tokenizer: ", code.numel(), " codes for ", code.size(0), " images of ", height, " x ",
            width, ", expected ", expected);
    return model_.ptr()->decode_code(code.to(device_), code.size(0), shape[0], shape[1]);
  }

  std::vector<int64_t> code_shape(int64_t height, int64_t width) const override {
    const int64_t factor = downsample();
    require(height > 0 && width > 0 && height % factor == 0 && width % factor == 0,
            ErrorCode::kInvalidArgument, "tokenizer: image of ", height, " x ", width,
            ", but both sides must be multiples of ", factor);
    return {height / factor, width / factor};
  }

  int64_t codebook_size() const override { return model_->config().codebook_size; }
  int64_t downsample() const override { return model_->config().downsample(); }
  std::string kind() const override { return "vqgan"; }
  std::string config_yaml() const override { return dump_config(model_->config()); }

  std::string fingerprint() const override {
    // Parameters alone: the usage buffer changes no code.
    return infer::fingerprint(kind(),
                              str_cat("codebook_l2_norm=", model_->config().codebook_l2_norm),
                              checkpoint::named_parameters(*model_));
  }

 private:
  tokenizer::Vqgan model_;
  c10::Device device_;
};

template <class Config>
Config read_model_section(const ConfigNode& root) {
  const ConfigNode* model = root.find("model");
  return read_config<Config>(model == nullptr ? root : *model);
}

// A tokenizer's config, of whatever kind.
struct Source {
  std::optional<ConfigNode> yaml;  // with a section `model`, or its fields
  std::string preset;              // "VQ-16"
  int64_t image_size = 0;
  bool is_of_run = false;  // `yaml` is what the weights were trained with
};

Source of_run(const std::string& path, bool has_scales) {
  const ConfigNode root = load_yaml(path);
  const ConfigNode* task = root.find("task");
  const char* expected = has_scales ? "var_tokenizer" : "tokenizer";
  require(task == nullptr || task->scalar == expected, ErrorCode::kInvalidArgument, path,
          ": a run of the task '", task == nullptr ? "" : printable(task->scalar),
          "', expected a tokenizer");
  require(root.find("model") != nullptr, ErrorCode::kInvalidArgument, path,
          ": no section 'model', expected the config of a tokenizer run");
  Source source{.yaml = root, .preset = {}, .is_of_run = true};
  const ConfigNode* data = root.find("data");
  const ConfigNode* size = data == nullptr ? nullptr : data->find("image_size");
  if (size != nullptr) parse_int(size->scalar, source.image_size);
  return source;
}

Source find_source(const FoundWeights& weights, const std::string& config) {
  Source source;
  if (!weights.run_config.empty()) {
    source = of_run(weights.run_config, is_multi_scale(weights.state));
  }
  if (config.empty()) return source;
  source.is_of_run = false;
  if (fs::exists(config)) {
    source.yaml = load_yaml(config);
    return source;
  }
  require(!config.ends_with(".yaml") && !config.ends_with(".yml"), ErrorCode::kNotFound, config,
          ": no such file");
  source.yaml.reset();
  source.preset = config;
  return source;
}

/// Weights that lie in a mapped file need no memory once a narrower copy is kept: their pages go
/// back to the system, to be read again by whoever asks for them.
void give_back_pages(const torch::nn::Module& model, const io::StateDict& state) {
  for (const auto& module : model.modules(/*include_self=*/false)) {
    auto* conv = module->as<nn::Conv2d>();
    if (conv == nullptr) continue;
    conv->on_weight_kept([mappings = state.mappings](const at::Tensor& weight) {
      ModelWeights{.tensors = {{"weight", weight}}, .mappings = mappings}.drop("weight");
    });
  }
}

template <class Model, class Config>
Model build(const Config& config, const io::StateDict& state, const std::string& optional,
            c10::ScalarType precision, c10::Device device) {
  Model model = [&] {
    const nn::SkipInit skip_init;
    return Model(config);
  }();
  checkpoint::load_into(*model, state, {.optional = {optional}, .may_share = true});
  model->eval();
  for (torch::Tensor& parameter : model->parameters()) parameter.requires_grad_(false);
  model->set_compute_dtype(precision);
  model->to(device);
  give_back_pages(*model, state);
  return model;
}

std::unique_ptr<ImageTokenizer> build_vqgan(const Source& source, const io::StateDict& state,
                                            c10::ScalarType precision, c10::Device device) {
  const auto config = source.yaml             ? read_model_section<VqganConfig>(*source.yaml)
                      : source.preset.empty() ? infer_vqgan_config(state)
                                              : tokenizer::vqgan_preset(source.preset);
  return std::make_unique<VqganTokenizer>(
      build<tokenizer::Vqgan>(config, state, "quantize.codebook_used", precision, device), device);
}

// Usage of other scales than those of `config` is nobody's here.
void drop_foreign_usage(const tokenizer::MultiScaleVqvaeConfig& config, bool is_of_run,
                        io::StateDict& state) {
  const auto num_scales = static_cast<int64_t>(config.patch_nums.size());
  const io::Array* usage = state.find(kUsage);
  if (usage == nullptr || usage->shape.size() != 2 || usage->shape[0] == num_scales) return;
  const std::string found =
      str_cat(state.source, ": counts the usage of ", usage->shape[0], " scales, but ");
  require(!is_of_run, ErrorCode::kInvalidArgument, found,
          "model.patch_nums in config.yaml of its run is ", format_shape(config.patch_nums),
          "; put back the config that it was trained with");
  log_warning(found, "serves the ", num_scales, " scales ", format_shape(config.patch_nums),
              " here, which it was not trained with");
  std::erase_if(state.tensors, [](const io::NamedArray& item) { return item.name == kUsage; });
}

// A file that tells its scales serves no others.
void check_scales(const std::vector<int64_t>& patch_nums, const Source& source,
                  const io::StateDict& state) {
  const std::vector<int64_t> own = recorded_scales(state);
  if (own.empty()) return;
  const char* given = source.is_of_run ? "model.patch_nums in config.yaml of its run is "
                      : source.yaml    ? "model.patch_nums of the given config is "
                                       : "the transformer that it is to serve has ";
  const char* remedy = source.is_of_run ? "put back the config that it was trained with"
                       : source.yaml    ? "give the scales of the weights, or no config"
                                        : "name the tokenizer that the transformer learned from";
  require(patch_nums == own, ErrorCode::kInvalidArgument, state.source,
          ": was trained with the scales ", format_shape(own), ", but ", given,
          format_shape(patch_nums), "; ", remedy);
}

std::unique_ptr<ImageTokenizer> build_multi_scale(const Source& source, io::StateDict state,
                                                  const TokenizerOptions& options,
                                                  c10::ScalarType precision, c10::Device device) {
  require(source.preset.empty(), ErrorCode::kInvalidArgument, state.source,
          ": a tokenizer of several scales, not '", source.preset, "'; name a YAML file");
  using Config = tokenizer::MultiScaleVqvaeConfig;
  const auto config = source.yaml ? read_model_section<Config>(*source.yaml)
                                  : infer_multi_scale_config(state, options.patch_nums);
  check_scales(config.patch_nums, source, state);
  drop_foreign_usage(config, source.is_of_run, state);
  return std::make_unique<MultiScaleTokenizer>(
      build<tokenizer::MultiScaleVqvae>(config, state, kUsage, precision, device), device);
}

}  // namespace

LoadedTokenizer load_tokenizer(const std::string& path, const TokenizerOptions& options) {
  const c10::Device device = parse_device(options.device);
  const c10::ScalarType precision = parse_precision(options.precision);
  FoundWeights weights = find_weights(path, options.weights, kTokenizerKeys);
  const Source source = find_source(weights, options.config);

  LoadedTokenizer loaded{.model = {},
                         .source = weights.state.source,
                         .weights = weights.name,
                         .step = weights.step,
                         .image_size = source.image_size};
  if (is_multi_scale(weights.state)) {
    loaded.model = build_multi_scale(source, std::move(weights.state), options, precision, device);
    const auto& scales = *static_cast<MultiScaleTokenizer*>(loaded.model.get());
    loaded.image_size = scales.image_size();
  } else {
    loaded.model = build_vqgan(source, weights.state, precision, device);
  }
  return loaded;
}

}  // namespace vgen::infer
