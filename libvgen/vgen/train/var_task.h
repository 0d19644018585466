#pragma once
// Training of VAR's transformer (arXiv:2404.02905; its train.py and trainer.py). B batch, L codes
// of an image, l of them in a stage of progressive training.

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "vgen/codes/code_loader.h"
#include "vgen/data/loader.h"
#include "vgen/train/code_source.h"
#include "vgen/train/frozen_vqvae.h"
#include "vgen/train/progressive.h"
#include "vgen/train/task.h"
#include "vgen/var/transformer.h"

namespace vgen::train {

/// Images drawn during training: the same numbers and noise each time, so that pictures of two
/// steps compare.
struct VarPreviewConfig {   // YAML section `preview:`
  int64_t num_images = 16;  ///< 0 = no previews
  int64_t columns = 0;      ///< of the grid; 0 = about a square
  double cfg_scale = 4;     ///< as infer::VarSettings has it: 0 = off, rising from scale to scale
  int64_t top_k = 900;      ///< 0 = off
  double top_p = 0.95;      ///< 1 = off
};
template <class Visitor>
void visit_fields(Visitor& v, VarPreviewConfig& c) {
  v("num_images", c.num_images, between(0, 4096));
  v("columns", c.columns, at_least(0));
  v("cfg_scale", c.cfg_scale, at_least(0));
  v("top_k", c.top_k, at_least(0));
  v("top_p", c.top_p, more_than(0, 1));
}

struct VarRunConfig {
  RunConfig run;
  var::VarConfig model;
  FrozenVqvaeConfig tokenizer;
  codes::CodeDataConfig data;  ///< codes that `vgen extract` made; or
  data::DataConfig images = {  ///< images, which are encoded on the fly
      .train = {},
      .val = {},
      .transform = "var",
      .val_transform = "var",
      .flip_prob = 0};
  OptimizerConfig optimizer = {
      .kind = "adamw",
      .weight_decay = 0.05,
      .decay_min_dims = 2,
      .no_decay = {"pos_start", "pos_1LC", "lvl_embed", "ada_gss", "scale_mul"}};
  double label_smoothing = 0;  ///< share of a target that is spread over all codes
  ProgressiveConfig progressive;
  VarPreviewConfig preview;
  int64_t val_batch_size = 0;  ///< samples at a time in validation; 0 = as many as in training
};
template <class Visitor>
void visit_fields(Visitor& v, VarRunConfig& c) {
  visit_fields(v, c.run);
  v("model", c.model);
  v("tokenizer", c.tokenizer);
  v("data", c.data);
  v("images", c.images);
  v("optimizer", c.optimizer);
  v("label_smoothing", c.label_smoothing, between(0, 1));
  v("progressive", c.progressive);
  v("preview", c.preview);
  v("val_batch_size", c.val_batch_size, at_least(0));
}

/// Throws Error(kInvalidArgument) where the sections do not fit together.
void validate(const VarRunConfig& config);

/// parameters: of a VarTransformer, whose sizes alone are looked at.
Workload var_workload(const var::VarConfig& model, const checkpoint::NamedTensors& parameters);

class VarTask : public Task {
 public:
  /// Opens the tokenizer and the data. Throws Error; kInvalidArgument where codes, images,
  /// tokenizer and model do not fit together: which dimension, and both values.
  VarTask(const VarRunConfig& config, const TaskContext& context);

  torch::nn::Module& model() override { return *var_; }
  std::vector<Phase> phases() override;
  std::vector<std::string> headline() const override { return {"loss", "accuracy"}; }
  /// Of the transformer alone, not of the tokenizer.
  Workload workload() const override;

  void next_batches(int64_t count) override;
  /// The terms, means over the tokens: "loss" (cross entropy in nats, without label smoothing),
  /// "accuracy" (share of codes that are the likeliest), and the same of the last scale that is
  /// learnt, "loss_last" and "accuracy_last". Labels are dropped as label_dropout.h says.
  PhaseLoss loss(size_t phase, size_t micro_batch, int64_t step) override;

  data::LoaderPosition position() const override { return train_->position(); }
  void seek(const data::LoaderPosition& position) override { train_->seek(position); }
  data::LoaderStats data_stats() const override { return train_->stats(); }
  int64_t batches_per_epoch() const override { return train_->batches_per_epoch(); }

  /// The same four over the validation data, all scales, no dropout. The labels are the true ones:
  /// the official code drops a tenth of them here too, so its losses are a little higher.
  std::map<std::string, double> validate() override;
  bool has_preview() const override { return config_.preview.num_images > 0; }
  /// Images of the model as it is, the classes evenly spread, in their order.
  std::optional<torch::Tensor> preview() override;
  void init_from(const std::string& path) override;

 protected:
  /// The micro-batches of a step.
  void set_batches(std::vector<codes::CodeBatch> batches);
  /// A tokenizer made elsewhere, on the device of the context.
  void set_tokenizer(std::unique_ptr<infer::MultiScaleTokenizer> tokenizer) {
    tokenizer_ = std::move(tokenizer);
  }

 private:
  void open_codes();
  void open_images();
  std::unique_ptr<CodeSource> checked(const std::string& path, codes::CodeLoader loader) const;
  std::unique_ptr<CodeSource> checked(const char* name, data::Loader loader);
  int64_t val_batch_size() const;
  ProgressiveStage stage_of(int64_t step) const;

  VarRunConfig config_;
  TaskContext context_;
  var::VarTransformer var_{nullptr};
  std::unique_ptr<infer::MultiScaleTokenizer> tokenizer_;
  std::unique_ptr<CodeSource> train_, val_;
  std::vector<codes::CodeBatch> batches_;
};

}  // namespace vgen::train
