#include "vgen/train/frozen_vqvae.h"

#include "vgen/core/error.h"
#include "vgen/infer/var_generate.h"

namespace vgen::train {

std::unique_ptr<infer::MultiScaleTokenizer> load_frozen_vqvae(const FrozenVqvaeConfig& config,
                                                              const var::VarConfig& model,
                                                              c10::Device device) {
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
