#include "vgen/infer/load_tokenizer.h"

#include <filesystem>
#include <optional>

#include "vgen/checkpoint/store.h"
#include "vgen/core/config.h"
#include "vgen/infer/fingerprint.h"
#include "vgen/infer/vqgan_config.h"
#include "vgen/tensor/device.h"
#include "vgen/tokenizer/vqgan.h"

namespace vgen::infer {
namespace {

namespace fs = std::filesystem;
using tokenizer::VqganConfig;

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

bool is_checkpoint_folder(const std::string& path) {
  if (fs::exists(path + "/index.json") || fs::is_directory(path + "/checkpoints")) return true;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    if (entry.path().filename().string().starts_with("step_")) return true;
  }
  return false;
}

struct Weights {
  io::StateDict state;
  std::string name;
  int64_t step = -1;
  std::string run_config;  // path of the run's config.yaml; "" = none
};

// <run>/config.yaml of <run>/checkpoints/step_0001000.
std::string run_config_of(const std::string& checkpoint) {
  fs::path path = fs::absolute(checkpoint).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();  // "step_0001000/"
  const std::string found = (path.parent_path().parent_path() / "config.yaml").string();
  return fs::exists(found) ? found : "";
}

Weights read_checkpoint(const std::string& path, const std::string& weights) {
  const checkpoint::CheckpointInfo info = checkpoint::find_checkpoint(path);
  const bool has_ema = fs::exists(info.path + "/ema.safetensors");
  const std::string name = weights == "auto" ? (has_ema ? "ema" : "model") : weights;
  require(name != "ema" || has_ema, ErrorCode::kNotFound, info.path,
          ": holds no averaged weights (ema.safetensors); the run had no EMA, use the weights "
          "'model'");
  Weights result;
  result.state = io::load_state_dict(info.path, name);
  result.name = name;
  result.step = info.step;
  result.run_config = run_config_of(info.path);
  return result;
}

Weights read_weights(const std::string& path, const std::string& weights) {
  require(fs::exists(path), ErrorCode::kNotFound, path,
          ": no such file or folder; expected a run folder, a checkpoint folder or a file with "
          "weights");
  const bool is_folder = fs::is_directory(path);
  if (is_folder && is_checkpoint_folder(path)) return read_checkpoint(path, weights);
  Weights result;
  // A flat file is known to load_state_dict as "auto".
  const std::string key = weights == "auto"    ? "ema,model,state_dict,auto"
                          : weights == "model" ? "model,state_dict,auto"
                                               : weights;
  result.state = io::load_state_dict(path, key);
  result.name = result.state.key;
  if (result.name.empty()) {
    result.name =
        fs::path(result.state.source).filename().string().starts_with("ema.") ? "ema" : "model";
  }
  require(weights != "model" || result.name != "ema", ErrorCode::kNotFound, path,
          ": holds only averaged weights ('ema'), no 'model'");
  return result;
}

VqganConfig read_model_section(const ConfigNode& root) {
  const ConfigNode* model = root.find("model");
  return read_config<VqganConfig>(model == nullptr ? root : *model);
}

struct RunConfig {
  VqganConfig model;
  int64_t image_size = 0;
};

RunConfig read_run_config(const std::string& path) {
  const ConfigNode root = load_yaml(path);
  const ConfigNode* task = root.find("task");
  require(task == nullptr || task->scalar == "tokenizer", ErrorCode::kInvalidArgument, path,
          ": a run of the task '", task == nullptr ? "" : printable(task->scalar),
          "', expected a tokenizer");
  require(root.find("model") != nullptr, ErrorCode::kInvalidArgument, path,
          ": no section 'model', expected the config of a tokenizer run");
  RunConfig config{.model = read_model_section(root)};
  const ConfigNode* data = root.find("data");
  const ConfigNode* size = data == nullptr ? nullptr : data->find("image_size");
  if (size != nullptr) parse_int(size->scalar, config.image_size);
  return config;
}

VqganConfig named_config(const std::string& name) {
  if (!fs::exists(name)) {
    require(!name.ends_with(".yaml") && !name.ends_with(".yml"), ErrorCode::kNotFound, name,
            ": no such file");
    return tokenizer::vqgan_preset(name);
  }
  return read_model_section(load_yaml(name));
}

}  // namespace

LoadedTokenizer load_tokenizer(const std::string& path, const TokenizerOptions& options) {
  const c10::Device device = parse_device(options.device);
  const c10::ScalarType precision = parse_precision(options.precision);
  const Weights weights = read_weights(path, options.weights);

  LoadedTokenizer loaded;
  std::optional<VqganConfig> config;
  if (!weights.run_config.empty()) {
    const RunConfig run = read_run_config(weights.run_config);
    config = run.model;
    loaded.image_size = run.image_size;
  }
  if (!options.config.empty()) config = named_config(options.config);
  if (!config) config = infer_vqgan_config(weights.state);

  tokenizer::Vqgan model(*config);
  checkpoint::load_into(*model, weights.state, {.optional = {"quantize.codebook_used"}});
  model->eval();
  for (torch::Tensor& parameter : model->parameters()) parameter.requires_grad_(false);
  model->set_compute_dtype(precision);
  model->to(device);

  loaded.source = weights.state.source;
  loaded.weights = weights.name;
  loaded.step = weights.step;
  loaded.model = std::make_unique<VqganTokenizer>(std::move(model), device);
  return loaded;
}

}  // namespace vgen::infer
