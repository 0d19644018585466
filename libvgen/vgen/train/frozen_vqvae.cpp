#include "vgen/train/frozen_vqvae.h"

#include "vgen/core/error.h"
#include "vgen/infer/find_weights.h"
#include "vgen/infer/var_generate.h"

namespace vgen::train {

namespace {

void check_scales_of_run(const FrozenVqvaeConfig& config, const var::VarConfig& model) {
  const auto found = infer::find_weights(config.path, config.weights, "ema,model,state_dict,auto");
  if (found.run_config.empty()) return;
  const ConfigNode root = load_yaml(found.run_config);
  const ConfigNode* task = root.find("task");
  const ConfigNode* section = root.find("model");
  const bool has_scales = task != nullptr && task->scalar == "var_tokenizer";
  if (!has_scales || section == nullptr) return;  // refused when it is loaded
  const auto trained = read_config<tokenizer::MultiScaleVqvaeConfig>(*section);
  require(trained.patch_nums == model.patch_nums, ErrorCode::kInvalidArgument,
          "model.patch_nums is ", format_shape(model.patch_nums), ", but the tokenizer ",
          config.path, " was trained with the scales ", format_shape(trained.patch_nums),
          "; set model.patch_nums to these");
}

}  // namespace

std::unique_ptr<infer::MultiScaleTokenizer> load_frozen_vqvae(const FrozenVqvaeConfig& config,
                                                              const var::VarConfig& model,
                                                              c10::Device device) {
  check_scales_of_run(config, model);
  auto loaded = infer::load_tokenizer(config.path, {.weights = config.weights,
                                                    .patch_nums = model.patch_nums,
                                                    .device = device.str(),
                                                    .precision = config.precision});
  require(!loaded.model->patch_nums().empty(), ErrorCode::kInvalidArgument, loaded.source,
          ": a tokenizer of one scale; VAR needs one of several, as `task: var_tokenizer` trains");
  std::unique_ptr<infer::MultiScaleTokenizer> tokenizer(
      static_cast<infer::MultiScaleTokenizer*>(loaded.model.release()));
  infer::check_fits(model, "model", *tokenizer, loaded.source);
  return tokenizer;
}

}  // namespace vgen::train
