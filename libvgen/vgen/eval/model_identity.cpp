#include "vgen/eval/model_identity.h"

#include <algorithm>
#include <utility>

#include "vgen/infer/fingerprint.h"
#include "vgen/infer/load_var.h"

namespace vgen::eval {

namespace {

// `traits`: the whole config, of which the heads, for one, change images but are in no weight.
std::string fingerprint_of(const std::string& kind, const std::string& traits,
                           const infer::ModelWeights& weights) {
  checkpoint::NamedTensors tensors;
  for (const auto& [name, tensor] : weights.tensors) tensors.push_back({name, tensor});
  std::ranges::sort(tensors, {}, &checkpoint::NamedTensor::name);
  return infer::fingerprint(kind, traits, tensors);
}

}  // namespace

io::Json identify_models(const SampleConfig& config) {
  const infer::FoundWeights found =
      infer::find_weights(config.checkpoint, config.gpt.weights, infer::kTransformerKeys);
  infer::TokenizerOptions decoder = config.decoder;
  decoder.device = "cpu";
  std::string fingerprint;
  if (infer::is_var(found.state)) {
    const infer::LoadedVar var = infer::load_var(found, {.config = config.gpt.config});
    fingerprint = fingerprint_of("var", dump_config(var.weights.config), var.weights);
    decoder.patch_nums = var.weights.config.patch_nums;
  } else {
    const infer::LoadedGpt gpt = infer::load_gpt(found, config.gpt);
    fingerprint = fingerprint_of("gpt", dump_config(gpt.weights.config), gpt.weights);
  }
  const infer::LoadedTokenizer tokenizer = infer::load_tokenizer(config.tokenizer, decoder);
  io::Json json = io::Json::object();
  json.set("checkpoint_file", io::Json::string(found.state.source));
  json.set("checkpoint_fingerprint", io::Json::string(fingerprint));
  json.set("tokenizer_file", io::Json::string(tokenizer.source));
  json.set("tokenizer_fingerprint", io::Json::string(tokenizer.model->fingerprint()));
  return json;
}

}  // namespace vgen::eval
