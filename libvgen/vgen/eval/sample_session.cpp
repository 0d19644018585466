#include "vgen/eval/sample_session.h"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <utility>

#include "vgen/codes/code_shard.h"
#include "vgen/core/log.h"
#include "vgen/core/process_clock.h"
#include "vgen/tensor/device.h"

namespace vgen::eval {

namespace {

using Clock = std::chrono::steady_clock;
using Image = SampleSession::Image;
using Batch = SampleSession::Batch;
using OnTokens = std::function<void(int64_t)>;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Pixels per code as the codes tell that a run learned from, while they are where they were.
void read_downsample(const std::string& run_config, infer::TrainedGrid& trained) {
  if (trained.downsample > 0 || run_config.empty()) return;
  const ConfigNode root = load_yaml(run_config);
  const ConfigNode* data = root.find("data");
  const ConfigNode* train = data == nullptr ? nullptr : data->find("train");
  if (train == nullptr) return;
  const std::string path = str_cat(train->scalar, "/", codes::kIndexName);
  if (!std::filesystem::exists(path)) return;
  codes::CodeInfo info;
  try {
    info = codes::read_index(train->scalar).info;
  } catch (const Error& error) {
    log_warning(error.what(), ": not asked for the grid");  // nothing that is drawn needs it
    return;
  }
  const bool is_of_run = info.grid.size() == 2 && info.num_tokens() == trained.block_size;
  if (!is_of_run || info.image_size == 0) return;
  trained.downsample = info.image_size / info.grid[0];
  trained.downsample_from = path;
}

// What is refused, or with `is_allowed` only said.
void refuse(bool is_allowed, const std::string& complaint, const std::string& remedy) {
  require(is_allowed, ErrorCode::kInvalidArgument, complaint, "; ", remedy,
          ", or allow it with --any-size");
  log_warning(complaint);
}

// Codes of other pixels are another tokenizer's; on another grid a GPT was never seen to work.
void check_grid(const infer::LoadedGpt& gpt, const infer::TrainedGrid& trained,
                const infer::LoadedTokenizer& tokenizer, bool is_allowed) {
  const int64_t step = tokenizer.model->downsample();
  if (trained.downsample > 0 && trained.downsample != step) {
    refuse(is_allowed,
           str_cat(gpt.source, ": learned codes of ", trained.downsample, " x ", trained.downsample,
                   " pixels (", trained.downsample_from, "), but a code of ", tokenizer.source,
                   " is ", step, " x ", step),
           "name the tokenizer that it was trained with");
  }
  const int64_t block_size = gpt.weights.config.block_size;
  if (trained.block_size == 0 || trained.block_size == block_size) return;
  const auto grid = [&](int64_t tokens) {
    const auto side = std::llround(std::sqrt(static_cast<double>(tokens)));
    return str_cat(side * step, " pixels, ", side, " x ", side, " codes");
  };
  refuse(is_allowed,
         str_cat(gpt.source, ": was trained at ", grid(trained.block_size), " (",
                 trained.block_size_from, "), but ", grid(block_size), " are asked for"),
         "leave --image-size out");
}

}  // namespace

class SampleSession::Drawer {
 public:
  virtual ~Drawer() = default;
  /// Codes, and what decode() needs besides.
  virtual at::Tensor draw(const std::vector<Image>& images, const OnTokens& on_tokens,
                          bool keep_scales) = 0;
  /// The last drawn codes.
  virtual void decode(Batch& batch) = 0;
  virtual int64_t num_classes() const = 0;
  virtual int64_t image_size() const = 0;
  virtual std::vector<int64_t> code_shape() const = 0;
  virtual std::string description() const = 0;
  virtual bool is_var() const = 0;
};

namespace {

class GptDrawer : public SampleSession::Drawer {
 public:
  GptDrawer(infer::FoundWeights found, const SampleConfig& config,
            const infer::LoadedTokenizer& tokenizer, const std::string& device)
      : settings_(gpt_settings(config.settings)), tokenizer_(*tokenizer.model) {
    const int64_t step = tokenizer_.downsample();
    infer::GptOptions options = config.gpt;
    if (config.image_size != 0) {
      require(config.image_size > 0 && config.image_size % step == 0, ErrorCode::kInvalidArgument,
              "image-size ", config.image_size, ": expected a multiple of the tokenizer's step, ",
              step);
      options.block_size = (config.image_size / step) * (config.image_size / step);
    }
    infer::LoadedGpt gpt = infer::load_gpt(found, options);
    found.state.tensors.clear();  // the engine lets go of each tensor as it packs it
    const gpt::GptConfig model = gpt.weights.config;
    require(model.model_type == "c2i", ErrorCode::kInvalidArgument, gpt.source,
            ": a text-conditional model; expected one of classes");
    require(tokenizer_.patch_nums().empty(), ErrorCode::kInvalidArgument, tokenizer.source,
            ": a tokenizer of several scales, but ", gpt.source,
            " draws one; use the tokenizer that the GPT was trained with");
    require(model.vocab_size == tokenizer_.codebook_size(), ErrorCode::kInvalidArgument, gpt.source,
            ": has a vocabulary of ", model.vocab_size, ", but the codebook of ", tokenizer.source,
            " has ", tokenizer_.codebook_size(),
            " entries; a GPT draws codes of the tokenizer that it was trained with");
    infer::TrainedGrid trained = gpt.trained;
    read_downsample(found.run_config, trained);
    check_grid(gpt, trained, tokenizer, config.any_size);
    image_size_ = model.grid_size() * step;
    if (trained.block_size == 0 && config.image_size == 0) {
      log_warning(gpt.source, ": does not tell what size it was trained at; ", image_size_,
                  " pixels are drawn, ", model.grid_size(), " x ", model.grid_size(),
                  " codes; say another with --image-size");
    }
    engine_ = make_gpt_engine(std::move(gpt.weights),
                              {.precision = config.precision,
                               .num_slots = config.batch_size * settings_.slots_per_image(),
                               .device = device});
    log_info("sample: ", gpt.source, " (", gpt.weights_key, "), ", model.n_layer,
             " layers of width ", model.dim, ", ", image_size_, " px, ", engine_->description());
  }

  at::Tensor draw(const std::vector<Image>& images, const OnTokens& on_tokens,
                  bool keep_scales) override {
    require(!keep_scales, ErrorCode::kInvalidArgument,
            "scales are asked for, but a GPT draws one scale only");
    std::vector<infer::GenerateRequest> requests;
    for (const Image& image : images) {
      infer::GenerateRequest request{.image = image.index, .prompt = {.label = image.label}};
      if (image.num_given > 0) request.given_N = image.given_L.slice(0, 0, image.num_given);
      requests.push_back(std::move(request));
    }
    code_ = infer::generate(*engine_, requests, settings_, on_tokens);
    const auto shape = code_shape();
    return code_.view({code_.size(0), shape[0], shape[1]});
  }

  void decode(Batch& batch) override {
    batch.image_B3HW = tokenizer_.decode(code_, image_size_, image_size_).cpu();
  }

  int64_t num_classes() const override { return engine_->config().num_classes; }
  int64_t image_size() const override { return image_size_; }
  std::vector<int64_t> code_shape() const override {
    return {engine_->config().grid_size(), engine_->config().grid_size()};
  }
  std::string description() const override { return engine_->description(); }
  bool is_var() const override { return false; }

 private:
  infer::GenerateSettings settings_;
  const infer::ImageTokenizer& tokenizer_;
  std::unique_ptr<infer::GptEngine> engine_;
  int64_t image_size_ = 0;
  at::Tensor code_;
};

class VarDrawer : public SampleSession::Drawer {
 public:
  VarDrawer(infer::LoadedVar loaded, const SampleConfig& config,
            const infer::LoadedTokenizer& tokenizer, const std::string& device)
      : settings_(var_settings(config.settings)) {
    const auto* scales = dynamic_cast<const infer::MultiScaleTokenizer*>(tokenizer.model.get());
    require(scales != nullptr, ErrorCode::kInvalidArgument, tokenizer.source,
            ": a tokenizer of one scale, but ", loaded.source,
            " draws several; use the tokenizer that the transformer was trained with");
    tokenizer_ = scales;
    const var::VarConfig model = loaded.weights.config;
    infer::check_fits(model, loaded.source, *scales, tokenizer.source);
    require(config.image_size == 0 || config.image_size == scales->image_size(),
            ErrorCode::kInvalidArgument, "image-size ", config.image_size, ": ", loaded.source,
            " draws images of ", scales->image_size(), " pixels only");
    engine_ = make_var_engine(std::move(loaded.weights),
                              {.precision = config.precision, .device = device});
    log_info("sample: ", loaded.source, " (", loaded.weights_key, "), VAR of depth ", model.depth,
             ", width ", model.width(), ", ", image_size(), " px, ", engine_->description());
  }

  at::Tensor draw(const std::vector<Image>& images, const OnTokens& on_tokens,
                  bool keep_scales) override {
    std::vector<infer::VarRequest> requests;
    for (const Image& image : images) {
      requests.push_back({.image = image.index,
                          .label = image.label,
                          .given_L = image.given_L,
                          .is_kept_L = image.is_kept_L});
    }
    drawn_ = infer::generate_var(*engine_, *tokenizer_, requests, settings_,
                                 {.keep_scales = keep_scales, .on_tokens = on_tokens});
    return drawn_.code_BL;
  }

  void decode(Batch& batch) override {
    batch.image_B3HW = tokenizer_->decode_latent(drawn_.latent_BZhh).cpu();
    for (const at::Tensor& latent : drawn_.latents) {
      batch.scales_B3HW.push_back(tokenizer_->decode_latent(latent).cpu());
    }
  }

  int64_t num_classes() const override { return engine_->config().num_classes; }
  int64_t image_size() const override { return tokenizer_->image_size(); }
  std::vector<int64_t> code_shape() const override { return {engine_->config().num_tokens()}; }
  std::string description() const override { return engine_->description(); }
  bool is_var() const override { return true; }

 private:
  infer::VarSettings settings_;
  const infer::MultiScaleTokenizer* tokenizer_ = nullptr;
  std::unique_ptr<infer::VarEngine> engine_;
  infer::VarImages drawn_;
};

}  // namespace

SampleSession::SampleSession(const SampleConfig& config) : config_(config) {
  const auto start = Clock::now();
  require(config.batch_size >= 1, ErrorCode::kInvalidArgument, "batch-size ", config.batch_size,
          ": expected at least 1");
  set_num_threads(static_cast<int>(config.threads));
  const std::string device = parse_device(config.device).str();
  infer::FoundWeights found =
      infer::find_weights(config.checkpoint, config.gpt.weights, infer::kTransformerKeys);
  infer::TokenizerOptions decoder = config.decoder;
  decoder.device = device;
  if (infer::is_var(found.state)) {
    infer::validate(var_settings(config.settings));
    const bool has_interval = config.settings.cfg_interval != -1;
    const std::string for_gpt = has_interval             ? "cfg-interval"
                                : config.gpt.n_head != 0 ? "n-head"
                                : config.any_size        ? "any-size"
                                                         : "";
    require(for_gpt.empty(), ErrorCode::kInvalidArgument, for_gpt, ": is for GPTs; ",
            found.state.source, " is a VAR");
    infer::LoadedVar loaded = infer::load_var(found, {.config = config.gpt.config});
    found.state.tensors.clear();  // the engine lets go of each tensor as it packs it
    decoder.patch_nums = loaded.weights.config.patch_nums;
    tokenizer_ = infer::load_tokenizer(config.tokenizer, decoder);
    drawer_ = std::make_unique<VarDrawer>(std::move(loaded), config, tokenizer_, device);
  } else {
    infer::validate(gpt_settings(config.settings));
    require(!config.settings.more_smooth, ErrorCode::kInvalidArgument,
            "more-smooth: mixtures of codes are for VAR; ", found.state.source, " is a GPT");
    tokenizer_ = infer::load_tokenizer(config.tokenizer, decoder);
    drawer_ = std::make_unique<GptDrawer>(std::move(found), config, tokenizer_, device);
  }
  image_size_ = drawer_->image_size();
  times_.load_seconds = seconds_since(start);
}

SampleSession::~SampleSession() = default;

SampleSession::Batch SampleSession::draw(const std::vector<Image>& images,
                                         const OnTokens& on_tokens, bool keep_scales) {
  auto start = Clock::now();
  Batch batch;
  const auto on_step = [&](int64_t tokens) {
    if (!times_.first_token_seconds) times_.first_token_seconds = seconds_since_process_start();
    if (on_tokens) on_tokens(tokens);
  };
  batch.code = drawer_->draw(images, on_step, keep_scales);
  times_.tokens += batch.code.numel();
  times_.generate_seconds += seconds_since(start);
  start = Clock::now();
  drawer_->decode(batch);
  times_.decode_seconds += seconds_since(start);
  return batch;
}

int64_t SampleSession::num_classes() const { return drawer_->num_classes(); }
std::vector<int64_t> SampleSession::code_shape() const { return drawer_->code_shape(); }
bool SampleSession::is_var() const { return drawer_->is_var(); }
std::string SampleSession::description() const { return drawer_->description(); }

int64_t SampleSession::num_tokens() const {
  int64_t product = 1;
  for (const int64_t size : code_shape()) product *= size;
  return product;
}

io::Json SampleSession::settings() const {
  SampleConfig config = config_;
  SampleSettings& settings = config.settings;
  if (is_var()) {
    const infer::VarSettings known = var_settings(settings);
    settings.cfg_scale = known.cfg_scale;
    settings.top_k = known.filter.top_k;
    settings.top_p = known.filter.top_p;
  } else {
    const infer::GenerateSettings known = gpt_settings(settings);
    settings.cfg_scale = known.cfg_scale;
    settings.top_k = known.filter.top_k;
    settings.top_p = known.filter.top_p;
  }
  return settings_json(config);
}

infer::GenerateSettings gpt_settings(const SampleSettings& settings) {
  return {.cfg_scale = settings.cfg_scale.value_or(4),
          .cfg_interval = settings.cfg_interval,
          .filter = {.temperature = settings.temperature,
                     .top_k = settings.top_k.value_or(2000),
                     .top_p = settings.top_p.value_or(1)},
          .seed = settings.seed};
}

infer::VarSettings var_settings(const SampleSettings& settings) {
  return {.cfg_scale = settings.cfg_scale.value_or(4),
          .filter = {.temperature = settings.temperature,
                     .top_k = settings.top_k.value_or(900),
                     .top_p = settings.top_p.value_or(0.95)},
          .more_smooth = settings.more_smooth,
          .seed = settings.seed};
}

}  // namespace vgen::eval
