#pragma once
// Training of the LlamaGen GPT on codes (arXiv:2406.06525; its train_c2i.py). B batch, N codes of
// an image.

#include <memory>

#include "vgen/codes/code_loader.h"
#include "vgen/gpt/transformer.h"
#include "vgen/infer/load_tokenizer.h"
#include "vgen/train/task.h"

namespace vgen::train {

/// The tokenizer that made the codes. With it the codes are checked to be its own, and previews
/// are drawn; without it ("" as the path) neither is possible.
struct CodeTokenizerConfig {       // YAML section `tokenizer:`
  std::string path = {};           ///< as infer::load_tokenizer: run, checkpoint, file
  std::string weights = "auto";    ///< auto (EMA if there are any), ema, model, or a dict's name
  std::string precision = "fp32";  ///< that previews are decoded in
};
template <class Visitor>
void visit_fields(Visitor& v, CodeTokenizerConfig& c) {
  v("path", c.path);
  v("weights", c.weights);
  v("precision", c.precision, one_of({"fp32", "bf16", "fp16"}));
}

/// Images drawn during training: the same numbers and noise each time, so that pictures of two
/// steps compare.
struct PreviewConfig {      // YAML section `preview:`
  int64_t num_images = 16;  ///< 0 = no previews
  int64_t columns = 0;      ///< of the grid; 0 = about a square
  double cfg_scale = 4;     ///< guidance, up to 1 = off
  double temperature = 1;
  int64_t top_k = 0;  ///< 0 = off
  double top_p = 1;   ///< 1 = off
};
template <class Visitor>
void visit_fields(Visitor& v, PreviewConfig& c) {
  v("num_images", c.num_images, between(0, 4096));
  v("columns", c.columns, at_least(0));
  v("cfg_scale", c.cfg_scale, at_least(0));
  v("temperature", c.temperature, at_least(0));
  v("top_k", c.top_k, at_least(0));
  v("top_p", c.top_p, more_than(0, 1));
}

struct GptRunConfig {
  RunConfig run;
  gpt::GptConfig model;
  CodeTokenizerConfig tokenizer;
  codes::CodeDataConfig data;
  OptimizerConfig optimizer;
  PreviewConfig preview;
  int64_t val_batch_size = 0;  ///< samples at a time in validation; 0 = as many as in training
};
template <class Visitor>
void visit_fields(Visitor& v, GptRunConfig& c) {
  visit_fields(v, c.run);
  v("model", c.model, only("model_type", {"c2i"}));  // captions are not trained on
  v("tokenizer", c.tokenizer);
  v("data", c.data);
  v("optimizer", c.optimizer);
  v("preview", c.preview);
  v("val_batch_size", c.val_batch_size, at_least(0));
}

/// Throws Error(kInvalidArgument) where the sections do not fit together.
void validate(const GptRunConfig& config);

/// From the shape of the model alone.
Workload gpt_workload(const gpt::GptConfig& model);

class GptTask : public Task {
 public:
  /// Opens the codes and the tokenizer. Throws Error; kInvalidArgument where codes, tokenizer and
  /// model do not fit together: which dimension, and both values.
  GptTask(const GptRunConfig& config, const TaskContext& context);

  torch::nn::Module& model() override { return *gpt_; }
  std::vector<Phase> phases() override;
  std::vector<std::string> headline() const override { return {"loss"}; }
  Workload workload() const override;

  void next_batches(int64_t count) override;
  /// The term "loss": mean cross entropy per token, in nats. Labels are dropped as label_dropout.h
  /// says.
  PhaseLoss loss(size_t phase, size_t micro_batch, int64_t step) override;

  data::LoaderPosition position() const override { return train_->position(); }
  void seek(const data::LoaderPosition& position) override { train_->seek(position); }
  data::LoaderStats data_stats() const override { return train_->stats(); }
  int64_t batches_per_epoch() const override { return train_->batches_per_epoch(); }

  /// loss (nats per token) and accuracy (share of tokens that are the likeliest), no dropout, true
  /// labels.
  std::map<std::string, double> validate() override;
  bool has_preview() const override { return tokenizer_ && config_.preview.num_images > 0; }
  /// Images of the model as it is, the classes evenly spread, in their order.
  std::optional<torch::Tensor> preview() override;
  void init_from(const std::string& path) override;

 protected:
  /// The micro-batches of a step.
  void set_batches(std::vector<codes::CodeBatch> batches);

 private:
  gpt::GptBatch model_batch(const codes::CodeBatch& batch, const torch::Tensor& label_B) const;

  GptRunConfig config_;
  TaskContext context_;
  gpt::Transformer gpt_{nullptr};
  std::unique_ptr<infer::ImageTokenizer> tokenizer_;
  std::optional<codes::CodeLoader> train_, val_;
  std::vector<codes::CodeBatch> batches_;
};

}  // namespace vgen::train
