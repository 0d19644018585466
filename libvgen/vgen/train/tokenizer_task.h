#pragma once
// Training of image tokenizers with LlamaGen's recipe (arXiv:2406.06525;
// tokenizer_image/vq_train.py): its own VQGAN here, VAR's in var_tokenizer_task.h. B batch, H
// height, W width.

#include "vgen/data/loader.h"
#include "vgen/tokenizer/vq_loss.h"
#include "vgen/tokenizer/vqgan.h"
#include "vgen/train/task.h"
#include "vgen/train/tokenizer_model.h"

namespace vgen::train {

/// Where LPIPS finds its weights.
struct LpipsConfig {     // YAML section `lpips:`
  std::string vgg = {};  ///< torchvision's VGG16
  std::string lin = {};  ///< LPIPS's linear layers, vgg.pth
};
template <class Visitor>
void visit_fields(Visitor& v, LpipsConfig& c) {
  v("vgg", c.vgg);
  v("lin", c.lin);
}

/// What the configs of all tokenizers have besides the model.
struct TokenizerRecipe {
  RunConfig run;
  tokenizer::VqLossConfig loss;
  LpipsConfig lpips;
  data::DataConfig data;
  OptimizerConfig optimizer;
  OptimizerConfig disc_optimizer;
  int64_t preview_images = 8;  ///< validation images in a preview
  int64_t val_batch_size = 0;  ///< images at a time in validation; 0 = as many as in training
};
/// All but `run`, which comes first, and what a config adds behind it.
template <class Visitor>
void visit_recipe(Visitor& v, TokenizerRecipe& c) {
  v("loss", c.loss);
  v("lpips", c.lpips);
  v("data", c.data);
  v("optimizer", c.optimizer);
  v("disc_optimizer", c.disc_optimizer);
  v("preview_images", c.preview_images, between(0, 256));
  v("val_batch_size", c.val_batch_size, at_least(0));
}

/// Of any tokenizer, from its shape: TokenizerFlops::train(), no tokens.
Workload tokenizer_workload(const TokenizerRecipe& recipe, const TokenizerShape& shape);

/// Throws Error(kInvalidArgument) where the sections do not fit together.
void validate_recipe(const TokenizerRecipe& recipe);

struct TokenizerRunConfig : TokenizerRecipe {  // task: tokenizer
  tokenizer::VqganConfig model;
};
template <class Visitor>
void visit_fields(Visitor& v, TokenizerRunConfig& c) {
  visit_fields(v, c.run);
  v("model", c.model);
  visit_recipe(v, c);
}

/// Throws Error(kInvalidArgument) where the sections do not fit together.
void validate(const TokenizerRunConfig& config);

class TokenizerTask : public Task {
 public:
  /// Opens the data and LPIPS's weights. Throws Error.
  TokenizerTask(const TokenizerRecipe& config, std::unique_ptr<TokenizerModel> model,
                const TaskContext& context);
  TokenizerTask(const TokenizerRunConfig& config, const TaskContext& context)
      : TokenizerTask(config, make_vqgan_model(config.model), context) {}

  torch::nn::Module& model() override { return model_->module(); }
  std::vector<std::pair<std::string, torch::nn::Module*>> companions() override;
  std::vector<Phase> phases() override;
  std::vector<std::string> headline() const override;
  Workload workload() const override;

  void next_batches(int64_t count) override;
  PhaseLoss loss(size_t phase, size_t micro_batch, int64_t step) override;

  data::LoaderPosition position() const override { return train_->position(); }
  void seek(const data::LoaderPosition& position) override { train_->seek(position); }
  data::LoaderStats data_stats() const override { return train_->stats(); }
  int64_t batches_per_epoch() const override { return train_->batches_per_epoch(); }

  /// psnr, rec_loss, lpips when its weights are given, and TokenizerModel::code_metrics().
  std::map<std::string, double> validate() override;
  /// The first validation images, each above its reconstruction.
  std::optional<torch::Tensor> preview() override;
  /// Of an official checkpoint "model" and, where it has one, "discriminator".
  void init_from(const std::string& path) override;

 protected:
  /// The micro-batches of a step, float32 (B, 3, H, W) on the device.
  void set_batches(std::vector<torch::Tensor> images);

 private:
  TokenizerRecipe config_;
  TaskContext context_;
  std::unique_ptr<nn::BatchRanks> ranks_;  ///< null: this is the only one
  std::unique_ptr<TokenizerModel> model_;
  tokenizer::VqLoss vq_loss_{nullptr};
  std::optional<data::Loader> train_, val_;
  std::vector<torch::Tensor> images_, recons_;  ///< of each micro-batch; recons_ without graph
};

}  // namespace vgen::train
