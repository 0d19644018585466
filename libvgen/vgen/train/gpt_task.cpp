#include "vgen/train/gpt_task.h"

#include <algorithm>
#include <cmath>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/infer/gpt_generate.h"
#include "vgen/infer/gpt_weights.h"
#include "vgen/nn/cross_entropy.h"
#include "vgen/tensor/autocast.h"
#include "vgen/tensor/deferred_init.h"
#include "vgen/tensor/device.h"
#include "vgen/tensor/image.h"
#include "vgen/train/label_dropout.h"

namespace vgen::train {

namespace {

constexpr int64_t kPreviewBatch = 64;  // images drawn at a time: bounds the caches

infer::GenerateSettings preview_settings(const GptRunConfig& config) {
  const PreviewConfig& preview = config.preview;
  return {.cfg_scale = preview.cfg_scale,
          .filter = {.temperature = preview.temperature,
                     .top_k = preview.top_k,
                     .top_p = preview.top_p},
          .seed = static_cast<uint64_t>(config.run.seed)};
}

}  // namespace

void validate(const GptRunConfig& config) {
  config.model.validate();
  require(!config.data.train.empty(), ErrorCode::kInvalidArgument,
          "data.train is empty; name a folder of codes, as `vgen extract` makes them");
  const infer::GenerateSettings settings = preview_settings(config);
  infer::validate(settings);
  const bool has_previews = config.preview.num_images > 0 && !config.tokenizer.path.empty();
  require(!has_previews || !settings.is_guided() || config.model.class_dropout_prob > 0,
          ErrorCode::kInvalidArgument, "preview.cfg_scale is ", settings.cfg_scale,
          ", but model.class_dropout_prob is 0, which "
          "leaves no null class to guide with; set preview.cfg_scale=1");
}

GptTask::GptTask(const GptRunConfig& config, const TaskContext& context)
    : config_(config), context_(context), gpt_(config.model) {
  move_to(*gpt_, context.device);
  if (!context.is_training) return;
  const gpt::GptConfig& model = config.model;
  codes::CodeRequirements required{.grid = {model.grid_size(), model.grid_size()},
                                   .num_tokens = model.block_size,
                                   .codebook_size = model.vocab_size,
                                   .num_classes = model.num_classes};
  if (!config.tokenizer.path.empty()) {
    auto loaded =
        infer::load_tokenizer(config.tokenizer.path, {.weights = config.tokenizer.weights,
                                                      .device = context.device.str(),
                                                      .precision = config.tokenizer.precision});
    require(loaded.model->codebook_size() == model.vocab_size, ErrorCode::kInvalidArgument,
            "model.vocab_size is ", model.vocab_size, ", but the codebook of ", loaded.source,
            " has ", loaded.model->codebook_size(), " entries; set model.vocab_size to that");
    required.tokenizer = loaded.model->fingerprint();
    tokenizer_ = std::move(loaded.model);
  }
  train_ = codes::CodeLoader::for_training(config.data, required,
                                           loader_options(context, context.micro_batch_size));
  if (!config.data.val.empty()) {
    const int64_t batch =
        config.val_batch_size > 0 ? config.val_batch_size : context.micro_batch_size;
    val_ = codes::CodeLoader::for_validation(config.data, required, loader_options(context, batch));
  }
}

std::vector<Phase> GptTask::phases() {
  return {{"", config_.optimizer, checkpoint::named_parameters(*gpt_), gpt_->blocks()}};
}

Workload GptTask::workload() const { return gpt_workload(config_.model); }

Workload gpt_workload(const gpt::GptConfig& model) {
  double matrix_weights = 0;  // of products with every token: all but embeddings and norms
  for (const auto& [name, shape] : infer::gpt_shapes(model)) {
    if (shape.size() == 2 && name.find("embedding") == std::string::npos) {
      matrix_weights += static_cast<double>(shape[0] * shape[1]);
    }
  }
  const auto tokens = static_cast<double>(model.block_size);
  const double attention = 12.0 * static_cast<double>(model.n_layer * model.dim) * tokens;
  return {.tokens_per_sample = model.block_size,
          .flops_per_sample = tokens * (6 * matrix_weights + attention)};
}

void GptTask::next_batches(int64_t count) {
  std::vector<codes::CodeBatch> batches;
  for (int64_t i = 0; i < count; ++i) batches.push_back(train_->next());
  set_batches(std::move(batches));
}

void GptTask::set_batches(std::vector<codes::CodeBatch> batches) {
  batches_ = std::move(batches);
  for (codes::CodeBatch& batch : batches_) {
    batch.code_BT = batch.code_BT.to(context_.device, /*non_blocking=*/true);
  }
}

gpt::GptBatch GptTask::model_batch(const codes::CodeBatch& batch,
                                   const torch::Tensor& label_B) const {
  return {.code_BN = batch.code_BT.to(context_.device),
          .condition = label_B.to(context_.device, /*non_blocking=*/true)};
}

PhaseLoss GptTask::loss(size_t /*phase*/, size_t micro_batch, int64_t step) {
  const codes::CodeBatch& batch = batches_[micro_batch];
  const Autocast autocast(context_.device, context_.precision);
  const gpt::GptConfig& model = config_.model;
  const torch::Tensor label_B = drop_labels(
      batch.label_B, batch.index, step,
      {.prob = model.class_dropout_prob, .null_class = model.num_classes, .seed = context_.seed});
  const gpt::GptBatch input = model_batch(batch, label_B);
  torch::Tensor loss = gpt::gpt_loss(gpt_(input), input.code_BN);
  torch::Tensor value = loss.detach();
  return {std::move(loss), {{"loss", std::move(value)}}};
}

std::map<std::string, double> GptTask::validate() {
  if (!val_) return {};
  const torch::NoGradGuard no_grad;
  gpt_->eval();
  double num_samples = 0, loss = 0, accuracy = 0;
  for_each_batch<codes::CodeBatch>(
      context_, *val_, [&](const codes::CodeBatch& batch, bool counts) {
        const Autocast autocast(context_.device, context_.precision);
        const gpt::GptBatch input = model_batch(batch, batch.label_B);
        const torch::Tensor logits_BNV = gpt_(input);
        const double size = counts ? static_cast<double>(batch.label_B.size(0)) : 0;
        num_samples += size;
        const nn::RowScores scores_BN = nn::score_rows(logits_BNV, input.code_BN);
        loss += size * scores_BN.loss.mean().item<double>();
        accuracy += size * scores_BN.is_right.mean().item<double>();
      });
  gpt_->train();
  std::vector<double> sums{num_samples, loss, accuracy};
  context_.sum_over_ranks(sums);
  if (sums[0] == 0) return {};
  return {{"loss", sums[1] / sums[0]}, {"accuracy", sums[2] / sums[0]}};
}

std::optional<torch::Tensor> GptTask::preview() {
  const int64_t count = config_.preview.num_images;
  if (!tokenizer_ || count == 0) return std::nullopt;
  const torch::NoGradGuard no_grad;
  const infer::GenerateSettings settings = preview_settings(config_);
  const int64_t batch = std::min(count, kPreviewBatch);
  const auto engine =
      infer::make_gpt_engine(infer::gpt_weights(config_.model, *gpt_),
                             {.precision = context_.precision == torch::kFloat32 ? "fp32" : "bf16",
                              .num_slots = batch * settings.slots_per_image(),
                              .device = context_.device.str()});
  const int64_t side = config_.model.grid_size() * tokenizer_->downsample();
  std::vector<torch::Tensor> images;
  for (int64_t first = 0; first < count; first += batch) {
    std::vector<infer::GenerateRequest> requests;
    for (int64_t i = first; i < std::min(count, first + batch); ++i) {
      requests.push_back({.image = static_cast<uint64_t>(i),
                          .prompt = {.label = i * config_.model.num_classes / count}});
    }
    const torch::Tensor code_BN = infer::generate(*engine, requests, settings);
    images.push_back(to_uint8(tokenizer_->decode(code_BN, side, side)));
  }
  const auto square = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(count))));
  const int64_t columns = config_.preview.columns > 0 ? config_.preview.columns : square;
  return image_grid(torch::cat(images), columns);
}

void GptTask::init_from(const std::string& path) {
  checkpoint::load_into(*gpt_, io::load_state_dict(path), {.optional = {"freqs_cis"}});
  log_info("began with the weights of ", path);
}

}  // namespace vgen::train
