#include "vgen/train/tokenizer_task.h"

#include <algorithm>
#include <cmath>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/tensor/image.h"
#include "vgen/train/group_ranks.h"

namespace vgen::train {

namespace {

tokenizer::NamedWeights read_weights(const std::string& path) {
  tokenizer::NamedWeights weights;
  try {
    for (const io::NamedArray& item : io::load_state_dict(path).tensors) {
      weights[item.name] = checkpoint::as_tensor(item.array).to(torch::kFloat32, false, true);
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNotFound) throw;
    throw_error(ErrorCode::kNotFound, error.what(), "; ", tokenizer::lpips_weights_help());
  }
  return weights;
}

tokenizer::Lpips load_lpips(const TokenizerRecipe& config) {
  if (config.loss.perceptual_weight == 0) return nullptr;
  require(!config.lpips.vgg.empty() && !config.lpips.lin.empty(), ErrorCode::kInvalidArgument,
          "loss.perceptual_weight is ", config.loss.perceptual_weight, ", but lpips.",
          config.lpips.vgg.empty() ? "vgg" : "lin",
          " names no file; set loss.perceptual_weight=0 to train without LPIPS, or get the "
          "weights: ",
          tokenizer::lpips_weights_help());
  const tokenizer::NamedWeights vgg = read_weights(config.lpips.vgg);
  return tokenizer::Lpips(vgg, read_weights(config.lpips.lin));
}

}  // namespace

void validate(const TokenizerRunConfig& config) {
  tokenizer::validate(config.model);
  const int64_t factor = config.model.downsample();
  require(config.data.image_size % factor == 0, ErrorCode::kInvalidArgument, "data.image_size is ",
          config.data.image_size, ", but model.encoder_ch_mult has ",
          config.model.encoder_ch_mult.size(), " levels and so needs a multiple of ", factor);
  validate_recipe(config);
}

void validate_recipe(const TokenizerRecipe& recipe) {
  require(!recipe.data.train.path.empty(), ErrorCode::kInvalidArgument,
          "data.train.path is empty; name a folder or tar of images");
}

TokenizerTask::TokenizerTask(const TokenizerRecipe& config, std::unique_ptr<TokenizerModel> model,
                             const TaskContext& context)
    : config_(config), context_(context), model_(std::move(model)) {
  vq_loss_ = tokenizer::VqLoss(config.loss, config.data.image_size, load_lpips(config));
  model_->module().to(context.device);
  vq_loss_->to(context.device);
  model_->set_compute_dtype(context.precision);
  vq_loss_->set_compute_dtype(context.precision);
  if (vq_loss_->perceptual_loss) {
    vq_loss_->perceptual_loss->use_dropout = config.loss.perceptual_dropout;
  }
  if (!context.is_training) return;
  if (context.group != nullptr) ranks_ = std::make_unique<GroupRanks>(*context.group);
  model_->set_ranks(ranks_.get());
  vq_loss_->set_ranks(ranks_.get());
  train_ =
      data::Loader::for_training(config.data, loader_options(context, context.micro_batch_size));
  if (!config.data.val.path.empty()) {
    const int64_t batch =
        config.val_batch_size > 0 ? config.val_batch_size : context.micro_batch_size;
    val_ = data::Loader::for_validation(config.data, loader_options(context, batch));
  }
}

std::vector<std::pair<std::string, torch::nn::Module*>> TokenizerTask::companions() {
  if (!vq_loss_->discriminator) return {};
  return {{"discriminator", vq_loss_->discriminator.get()}};
}

std::vector<Phase> TokenizerTask::phases() {
  // Kernels of the CPU want weights in float32, and cast where it helps.
  std::vector<Phase> phases{{"gen", config_.optimizer, checkpoint::named_parameters(model()),
                             model_->blocks(), /*is_float32=*/true}};
  if (vq_loss_->discriminator) {
    phases.push_back({"disc", config_.disc_optimizer,
                      checkpoint::named_parameters(*vq_loss_->discriminator),
                      vq_loss_->discriminator->blocks(), /*is_float32=*/true});
  }
  return phases;
}

std::vector<std::string> TokenizerTask::headline() const {
  return {"gen_loss", "rec_loss", "codebook_usage"};
}

Workload TokenizerTask::workload() const { return tokenizer_workload(config_, model_->shape()); }

Workload tokenizer_workload(const TokenizerRecipe& recipe, const TokenizerShape& shape) {
  const TokenizerFlops flops = tokenizer_flops(shape, recipe.loss, recipe.data.image_size);
  return {.flops_per_sample = flops.train()};
}

void TokenizerTask::next_batches(int64_t count) {
  std::vector<torch::Tensor> images;
  for (int64_t i = 0; i < count; ++i) {
    images.push_back(train_->next().image_B3HW.to(context_.device, torch::kFloat32,
                                                  /*non_blocking=*/true));
  }
  set_batches(std::move(images));
}

void TokenizerTask::set_batches(std::vector<torch::Tensor> images) {
  images_ = std::move(images);
  recons_.assign(images_.size(), {});
}

PhaseLoss TokenizerTask::loss(size_t phase, size_t micro_batch, int64_t step) {
  const torch::Tensor& image_B3HW = images_[micro_batch];
  torch::Tensor& recon_B3HW = recons_[micro_batch];
  if (phase == 1) {
    auto result = vq_loss_->discriminator_loss(image_B3HW, recon_B3HW, step);
    return {.loss = std::move(result.loss), .terms = std::move(result.terms)};
  }
  const auto output = model_->train_forward(image_B3HW, step, micro_batch);
  auto result = vq_loss_->generator_loss({.image_B3HW = image_B3HW,
                                          .recon_B3HW = output.image_B3HW,
                                          .quantizer = output.losses,
                                          .step = step,
                                          .last_weight = model_->last_weight()});
  if (vq_loss_->discriminator) recon_B3HW = output.image_B3HW.detach();
  result.terms.insert(result.terms.end(), output.terms.begin(), output.terms.end());
  return {.loss = std::move(result.loss),
          .terms = std::move(result.terms),
          .has_written_parameters = output.has_moved_codes};
}

std::map<std::string, double> TokenizerTask::validate() {
  if (!val_) return {};
  const torch::NoGradGuard no_grad;
  model().eval();
  tokenizer::Lpips& perceptual_loss = vq_loss_->perceptual_loss;
  if (perceptual_loss) perceptual_loss->eval();
  std::vector<double> batches{static_cast<double>(val_->batches_per_epoch())};
  context_.sum_over_ranks(batches);
  model_->begin_validation(
      static_cast<int64_t>(std::ceil(batches[0] / static_cast<double>(context_.world_size))));
  std::vector<double> sums(4);  // images, then psnr, rec_loss, lpips
  for_each_batch<data::ImageBatch>(
      context_, *val_, [&](const data::ImageBatch& batch, bool counts) {
        const auto image_B3HW = batch.image_B3HW.to(context_.device);
        const torch::Tensor recon_B3HW = model_->measure(image_B3HW, counts);
        if (!counts) return;
        const auto size = static_cast<double>(image_B3HW.size(0));
        sums[0] += size;
        sums[1] += psnr_B(image_B3HW, recon_B3HW).sum().item<double>();
        sums[2] += size * torch::mse_loss(recon_B3HW, image_B3HW).item<double>();
        if (perceptual_loss) {
          sums[3] += perceptual_loss(image_B3HW, recon_B3HW).sum().item<double>();
        }
      });
  model().train();
  if (perceptual_loss) perceptual_loss->train();
  context_.sum_over_ranks(sums);
  if (sums[0] == 0) return {};
  std::map<std::string, double> metrics = model_->code_metrics();
  metrics["psnr"] = sums[1] / sums[0];
  metrics["rec_loss"] = sums[2] / sums[0];
  if (perceptual_loss) metrics["lpips"] = sums[3] / sums[0];
  return metrics;
}

std::optional<torch::Tensor> TokenizerTask::preview() {
  if (!val_ || config_.preview_images == 0) return std::nullopt;
  const torch::NoGradGuard no_grad;
  model().eval();
  std::vector<torch::Tensor> originals, recons;
  int64_t count = 0;
  while (const auto batch = val_->next_in_pass()) {
    if (count >= config_.preview_images) continue;  // to the end: the next pass begins anew
    const auto image_B3HW =
        batch->image_B3HW.slice(0, 0, config_.preview_images - count).to(context_.device);
    originals.push_back(to_uint8(image_B3HW));
    recons.push_back(to_uint8(model_->reconstruct(image_B3HW)));
    count += image_B3HW.size(0);
  }
  model().train();
  if (count == 0) return std::nullopt;
  return image_grid(torch::cat({torch::cat(originals), torch::cat(recons)}), count);
}

void TokenizerTask::init_from(const std::string& path) {
  model_->load(io::load_state_dict(path));
  log_info("began with the weights of ", path);
  if (!vq_loss_->discriminator) return;
  std::optional<io::StateDict> state;
  try {
    state = io::load_state_dict(path, "discriminator");
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNotFound) throw;
  }
  if (!state) {
    log_info(path, " has no discriminator: it begins with random weights");
    return;
  }
  checkpoint::load_into(*vq_loss_->discriminator, *state);
}

}  // namespace vgen::train
