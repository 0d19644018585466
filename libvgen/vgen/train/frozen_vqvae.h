#pragma once
// The frozen tokenizer of a VAR run: it makes codes of images, and what the transformer reads of
// codes.

#include <c10/core/Device.h>

#include <memory>
#include <string>

#include "vgen/core/config.h"
#include "vgen/infer/multi_scale_tokenizer.h"
#include "vgen/var/config.h"

namespace vgen::train {

struct FrozenVqvaeConfig {         // YAML section `tokenizer:`
  std::string path = {};           ///< as infer::load_tokenizer: run, checkpoint, file
  std::string weights = "auto";    ///< auto (EMA if there are any), ema, model, or a dict's name
  std::string precision = "fp32";  ///< of its encoder and decoder
};
template <class Visitor>
void visit_fields(Visitor& v, FrozenVqvaeConfig& c) {
  v("path", c.path);
  v("weights", c.weights);
  v("precision", c.precision, one_of({"fp32", "bf16", "fp16"}));
}

/// The tokenizer with the scales of `model`: of a run they must be those that it was trained with,
/// other files do not tell. Throws Error as infer::load_tokenizer, and kInvalidArgument where the
/// tokenizer has one scale only or is not made for `model`: which dimension, and both values.
std::unique_ptr<infer::MultiScaleTokenizer> load_frozen_vqvae(const FrozenVqvaeConfig& config,
                                                              const var::VarConfig& model,
                                                              c10::Device device);

}  // namespace vgen::train
