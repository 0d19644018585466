#include "vgen/infer/find_weights.h"

#include <filesystem>

#include "vgen/checkpoint/store.h"
#include "vgen/io/shards.h"

namespace vgen::infer {

namespace {

namespace fs = std::filesystem;

// <run>/config.yaml of <run>/checkpoints/step_0001000; "" where there is none.
std::string config_of_run(const std::string& checkpoint) {
  fs::path folder = fs::absolute(checkpoint).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "step_0001000/"
  if (!fs::exists(folder / "index.json")) return "";
  const std::string config = (folder.parent_path().parent_path() / "config.yaml").string();
  return fs::exists(config) ? config : "";
}

FoundWeights read_checkpoint(const std::string& path, const std::string& weights) {
  const checkpoint::CheckpointInfo info = checkpoint::find_checkpoint(path);
  const bool has_ema = io::has_tensor_file(info.path + "/ema.safetensors");
  const std::string name = weights == "auto" ? (has_ema ? "ema" : "model") : weights;
  require(name != "ema" || has_ema, ErrorCode::kNotFound, info.path,
          ": holds no averaged weights (ema.safetensors); the run had no EMA, use the weights "
          "'model'");
  return {.state = io::load_state_dict(info.path, name),
          .name = name,
          .step = info.step,
          .run_config = config_of_run(info.path)};
}

// "ema,model,auto" without the averaged weights.
std::string without_ema(const std::string& keys) {
  std::string rest;
  for (const std::string& key : split(keys, ',')) {
    if (key != "ema") rest += (rest.empty() ? "" : ",") + key;
  }
  return rest;
}

}  // namespace

FoundWeights find_weights(const std::string& path, const std::string& weights,
                          const std::string& auto_keys) {
  require(fs::exists(path), ErrorCode::kNotFound, path,
          ": no such file or folder; expected a run folder, a checkpoint folder or a file with "
          "weights");
  if (checkpoint::is_checkpoint_path(path)) return read_checkpoint(path, weights);
  const std::string key = weights == "auto"    ? auto_keys
                          : weights == "model" ? without_ema(auto_keys)
                                               : weights;
  const std::string folder = fs::absolute(path).parent_path().string();
  FoundWeights found{.state = io::load_state_dict(path, key),
                     .name = {},
                     .run_config = fs::is_directory(path) ? "" : config_of_run(folder)};
  found.name = found.state.key;
  if (found.name.empty()) {
    const bool is_ema = fs::path(found.state.source).filename().string().starts_with("ema.");
    found.name = is_ema ? "ema" : "model";
  }
  require(weights != "model" || found.name != "ema", ErrorCode::kNotFound, path,
          ": holds only averaged weights ('ema'), no 'model'");
  return found;
}

}  // namespace vgen::infer
