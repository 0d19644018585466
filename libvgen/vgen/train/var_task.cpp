#include "vgen/train/var_task.h"

#include <algorithm>
#include <cmath>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/infer/load_var.h"
#include "vgen/infer/var_generate.h"
#include "vgen/nn/cross_entropy.h"
#include "vgen/tensor/autocast.h"
#include "vgen/tensor/deferred_init.h"
#include "vgen/tensor/image.h"
#include "vgen/train/label_dropout.h"

namespace vgen::train {

namespace {

constexpr int64_t kPreviewBatch = 16;  // images drawn at a time: bounds the caches

infer::VarSettings preview_settings(const VarRunConfig& config) {
  const VarPreviewConfig& preview = config.preview;
  return {.cfg_scale = preview.cfg_scale,
          .filter = {.top_k = preview.top_k, .top_p = preview.top_p},
          .seed = static_cast<uint64_t>(config.run.seed)};
}

/// Means over the tokens of a batch, scalars on its device.
struct TokenMetrics {
  torch::Tensor loss, loss_last, accuracy, accuracy_last;
};

// Without label smoothing. The last scale begins at token `last_begin`.
TokenMetrics token_metrics(const nn::RowScores& scores_Bl, int64_t last_begin) {
  return {.loss = scores_Bl.plain_loss.mean(),
          .loss_last = scores_Bl.plain_loss.slice(1, last_begin).mean(),
          .accuracy = scores_Bl.is_right.mean(),
          .accuracy_last = scores_Bl.is_right.slice(1, last_begin).mean()};
}

}  // namespace

void validate(const VarRunConfig& config) {
  config.model.validate();
  const bool has_codes = !config.data.train.empty(), has_images = !config.images.train.path.empty();
  require(has_codes || has_images, ErrorCode::kInvalidArgument,
          "data.train and images.train.path are empty; name a folder of codes, as `vgen extract` "
          "makes them, or a folder or tar of images");
  require(!has_codes || !has_images, ErrorCode::kInvalidArgument, "data.train is ",
          config.data.train, " and images.train.path is ", config.images.train.path,
          "; give one of the two");
  require(!config.tokenizer.path.empty(), ErrorCode::kInvalidArgument,
          "tokenizer.path is empty; name the tokenizer: the model reads what it makes of the "
          "codes");
  require(
      config.progressive.first_scale < config.model.num_scales() || config.progressive.share == 0,
      ErrorCode::kInvalidArgument, "progressive.first_scale is ", config.progressive.first_scale,
      ", but model.patch_nums has the scales 0 to ", config.model.num_scales() - 1);
  const infer::VarSettings settings = preview_settings(config);
  infer::validate(settings);
  require(config.preview.num_images == 0 || !settings.is_guided() ||
              config.model.class_dropout_prob > 0,
          ErrorCode::kInvalidArgument, "preview.cfg_scale is ", settings.cfg_scale,
          ", but model.class_dropout_prob is 0, so the null class to guide with is never learnt; "
          "set preview.cfg_scale=0");
}

VarTask::VarTask(const VarRunConfig& config, const TaskContext& context)
    : config_(config), context_(context), var_(config.model) {
  move_to(*var_, context.device);
  if (!context.is_training) return;
  tokenizer_ = load_frozen_vqvae(config.tokenizer, config.model, context.device);
  if (config.data.train.empty()) {
    open_images();
  } else {
    open_codes();
  }
}

int64_t VarTask::val_batch_size() const {
  return config_.val_batch_size > 0 ? config_.val_batch_size : context_.micro_batch_size;
}

std::unique_ptr<CodeSource> VarTask::checked(const std::string& path,
                                             codes::CodeLoader loader) const {
  const codes::CodeInfo& info = loader.dataset().info();
  require(info.patch_nums == config_.model.patch_nums, ErrorCode::kInvalidArgument, path,
          ": the codes have ",
          info.patch_nums.empty() ? "one scale alone"
                                  : str_cat("the scales ", format_shape(info.patch_nums)),
          ", but model.patch_nums is ", format_shape(config_.model.patch_nums),
          "; extract the codes with the tokenizer of this config, or change model.patch_nums");
  try {
    codes::check_fits(info, {.tokenizer = tokenizer_->fingerprint()});
  } catch (Error& error) {
    error.add_context(path);
    throw;
  }
  return codes_from_files(std::move(loader));
}

void VarTask::open_codes() {
  // The scales are compared before the fingerprint, which would not tell what differs.
  const codes::CodeRequirements required{.codebook_size = config_.model.codebook_size,
                                         .num_classes = config_.model.num_classes};
  const auto options = loader_options(context_, context_.micro_batch_size);
  train_ =
      checked(config_.data.train, codes::CodeLoader::for_training(config_.data, required, options));
  if (config_.data.val.empty()) return;
  const auto val_options = loader_options(context_, val_batch_size());
  val_ = checked(config_.data.val,
                 codes::CodeLoader::for_validation(config_.data, required, val_options));
}

std::unique_ptr<CodeSource> VarTask::checked(const char* name, data::Loader loader) {
  const int64_t found = loader.num_classes(), known = config_.model.num_classes;
  require(found > 0, ErrorCode::kInvalidArgument, name,
          " has no labels; the model learns images of a class: use class folders");
  require(found <= known, ErrorCode::kInvalidArgument, name, " has ", found,
          " classes, but model.num_classes is ", known, "; raise it");
  return codes_of_images(std::move(loader), [this](const torch::Tensor& image_B3SS) {
    return tokenizer_->encode(image_B3SS.to(context_.device, torch::kFloat32,
                                            /*non_blocking=*/true));
  });
}

void VarTask::open_images() {
  const int64_t side = tokenizer_->image_size();
  require(config_.images.image_size == side, ErrorCode::kInvalidArgument, "images.image_size is ",
          config_.images.image_size, ", but the tokenizer ", config_.tokenizer.path,
          " with the scales ", format_shape(config_.model.patch_nums), " describes images of ",
          side, " pixels; set images.image_size to that");
  const auto options = loader_options(context_, context_.micro_batch_size);
  train_ = checked("images.train", data::Loader::for_training(config_.images, options));
  if (config_.images.val.path.empty()) return;
  const auto val_options = loader_options(context_, val_batch_size());
  val_ = checked("images.val", data::Loader::for_validation(config_.images, val_options));
}

std::vector<Phase> VarTask::phases() {
  return {{"", config_.optimizer, checkpoint::named_parameters(*var_), var_->blocks()}};
}

Workload VarTask::workload() const {
  return var_workload(config_.model, checkpoint::named_parameters(*var_));
}

Workload var_workload(const var::VarConfig& model, const checkpoint::NamedTensors& parameters) {
  double per_token = 0, per_sample = 0;  // weights of matrix products
  for (const auto& item : parameters) {
    if (item.tensor.dim() != 2 || item.name == "class_emb.weight" ||
        item.name == "lvl_embed.weight") {
      continue;
    }
    const bool is_of_condition = item.name.find("ada_lin.") != std::string::npos;
    (is_of_condition ? per_sample : per_token) += static_cast<double>(item.tensor.numel());
  }
  const auto tokens = static_cast<double>(model.num_tokens());
  const double attention = 12.0 * static_cast<double>(model.depth * model.width()) * tokens;
  return {.tokens_per_sample = model.num_tokens(),
          .flops_per_sample = 6 * per_sample + tokens * (6 * per_token + attention)};
}

void VarTask::next_batches(int64_t count) {
  std::vector<codes::CodeBatch> batches;
  for (int64_t i = 0; i < count; ++i) batches.push_back(train_->next());
  set_batches(std::move(batches));
}

void VarTask::set_batches(std::vector<codes::CodeBatch> batches) {
  batches_ = std::move(batches);
  for (codes::CodeBatch& batch : batches_) {
    batch.code_BT = batch.code_BT.to(context_.device, /*non_blocking=*/true);
  }
}

ProgressiveStage VarTask::stage_of(int64_t step) const {
  const int64_t num_scales = config_.model.num_scales();
  if (config_.progressive.share == 0) return {.last_scale = num_scales - 1};
  const int64_t batches = batches_per_epoch();
  const int64_t epoch = steps_per_epoch(config_.run, batches);
  const RunLength length{.total_steps = total_steps(config_.run, batches),
                         .warmup_steps = in_steps(config_.run.schedule, epoch).warmup_steps,
                         .steps_per_epoch = epoch};
  return progressive_stage(config_.progressive, num_scales, length, step - 1);
}

PhaseLoss VarTask::loss(size_t /*phase*/, size_t micro_batch, int64_t step) {
  const codes::CodeBatch& batch = batches_[micro_batch];
  const var::VarConfig& model = config_.model;
  const ProgressiveStage stage = stage_of(step);
  const int64_t last_begin = model.scale_begin(stage.last_scale);
  const int64_t length = model.scale_end(stage.last_scale);
  const auto label_B = drop_labels(
      batch.label_B, batch.index, step,
      {.prob = model.class_dropout_prob, .null_class = model.num_classes, .seed = context_.seed});
  const auto teacher_BMZ = tokenizer_->quantizer().teacher_input(batch.code_BT);
  const auto code_Bl = batch.code_BT.slice(1, 0, length);

  const Autocast autocast(context_.device, context_.precision);
  const auto logits_BlV =
      var_(label_B.to(context_.device, /*non_blocking=*/true), teacher_BMZ, stage.last_scale);
  const auto scores_Bl = nn::score_rows(logits_BlV, code_Bl, config_.label_smoothing);
  // quirk: a stage of progressive training has the weights of the whole sequence, so it adds up to
  // less than 1.
  auto weight_l =
      torch::full({length}, 1 / static_cast<double>(model.num_tokens()), scores_Bl.loss.options());
  weight_l.slice(0, last_begin).mul_(stage.newest_weight);
  torch::Tensor loss = var::var_loss(scores_Bl.loss, weight_l);

  const torch::NoGradGuard no_grad;
  const TokenMetrics metrics = token_metrics(scores_Bl, last_begin);
  return {std::move(loss),
          {{"loss", metrics.loss},
           {"loss_last", metrics.loss_last},
           {"accuracy", metrics.accuracy},
           {"accuracy_last", metrics.accuracy_last}}};
}

std::map<std::string, double> VarTask::validate() {
  if (!val_) return {};
  const torch::NoGradGuard no_grad;
  var_->eval();
  const int64_t last_begin = config_.model.scale_begin(config_.model.num_scales() - 1);
  std::vector<double> sums(5);  // samples, then in the order below
  for_each_batch<codes::CodeBatch>(
      context_, *val_, [&](const codes::CodeBatch& batch, bool counts) {
        const auto code_BL = batch.code_BT.to(context_.device);
        const auto teacher_BMZ = tokenizer_->quantizer().teacher_input(code_BL);
        const Autocast autocast(context_.device, context_.precision);
        const auto logits_BLV = var_(batch.label_B.to(context_.device), teacher_BMZ);
        const TokenMetrics metrics = token_metrics(nn::score_rows(logits_BLV, code_BL), last_begin);
        const double size = counts ? static_cast<double>(code_BL.size(0)) : 0;
        sums[0] += size;
        sums[1] += size * metrics.loss.item<double>();
        sums[2] += size * metrics.loss_last.item<double>();
        sums[3] += size * metrics.accuracy.item<double>();
        sums[4] += size * metrics.accuracy_last.item<double>();
      });
  var_->train();
  context_.sum_over_ranks(sums);
  if (sums[0] == 0) return {};
  return {{"loss", sums[1] / sums[0]},
          {"loss_last", sums[2] / sums[0]},
          {"accuracy", sums[3] / sums[0]},
          {"accuracy_last", sums[4] / sums[0]}};
}

std::optional<torch::Tensor> VarTask::preview() {
  const int64_t count = config_.preview.num_images;
  if (!tokenizer_ || count == 0) return std::nullopt;
  const torch::NoGradGuard no_grad;
  const infer::VarSettings settings = preview_settings(config_);
  const auto engine =
      infer::make_var_engine(infer::var_weights(config_.model, *var_),
                             {.precision = context_.precision == torch::kFloat32 ? "fp32" : "bf16",
                              .device = context_.device.str()});
  std::vector<torch::Tensor> images;
  for (int64_t first = 0; first < count; first += kPreviewBatch) {
    std::vector<infer::VarRequest> requests;
    for (int64_t i = first; i < std::min(count, first + kPreviewBatch); ++i) {
      requests.push_back(
          {.image = static_cast<uint64_t>(i), .label = i * config_.model.num_classes / count});
    }
    const auto drawn = infer::generate_var(*engine, *tokenizer_, requests, settings);
    images.push_back(to_uint8(tokenizer_->decode_latent(drawn.latent_BZhh)));
  }
  const auto square = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(count))));
  const int64_t columns = config_.preview.columns > 0 ? config_.preview.columns : square;
  return image_grid(torch::cat(images), columns);
}

void VarTask::init_from(const std::string& path) {
  const io::StateDict state = io::load_state_dict(path);
  infer::check_scales(config_.model, "this run", state);
  checkpoint::load_into(*var_, state);
  log_info("began with the weights of ", path);
}

}  // namespace vgen::train
