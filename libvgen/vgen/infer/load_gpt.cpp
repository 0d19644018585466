#include "vgen/infer/load_gpt.h"

#include <filesystem>
#include <optional>

#include "vgen/checkpoint/run_folder.h"
#include "vgen/checkpoint/store.h"
#include "vgen/core/config.h"

namespace vgen::infer {

namespace {

namespace fs = std::filesystem;
using gpt::GptConfig;

bool is_checkpoint_folder(const std::string& path) {
  return fs::exists(path + "/index.json") || checkpoint::is_run_folder(path) ||
         fs::path(path).filename() == "checkpoints";
}

struct Found {
  io::StateDict state;
  std::string key;
  int64_t step = -1;
  std::string run_config;  // "" = none
};

Found read_checkpoint(const std::string& path, const std::string& weights) {
  const checkpoint::CheckpointInfo info = checkpoint::find_checkpoint(path);
  const bool has_ema = fs::exists(info.path + "/ema.safetensors");
  const std::string key = weights == "auto" ? (has_ema ? "ema" : "model") : weights;
  require(key != "ema" || has_ema, ErrorCode::kNotFound, info.path,
          ": holds no averaged weights (ema.safetensors); the run had no EMA, use the weights "
          "'model'");
  const fs::path run = fs::absolute(info.path).lexically_normal().parent_path().parent_path();
  const std::string config = (run / "config.yaml").string();
  return {io::load_state_dict(info.path, key), key, info.step, fs::exists(config) ? config : ""};
}

Found read_weights(const std::string& path, const std::string& weights) {
  require(fs::exists(path), ErrorCode::kNotFound, path,
          ": no such file or folder; expected a run folder, a checkpoint folder or a file with "
          "weights");
  if (fs::is_directory(path) && is_checkpoint_folder(path)) return read_checkpoint(path, weights);
  const std::string key =
      weights == "auto" || weights == "model" ? "model,module,state_dict,auto" : weights;
  Found found{.state = io::load_state_dict(path, key), .key = "", .run_config = ""};
  found.key = found.state.key.empty() ? "model" : found.state.key;
  // Training arguments lie beside the dict of weights.
  if (!found.state.key.empty()) {
    found.state.metadata = io::load_state_dict(path, "all").metadata;
  }
  return found;
}

GptConfig read_model_section(const ConfigNode& root) {
  const ConfigNode* model = root.find("model");
  return read_config<GptConfig>(model == nullptr ? root : *model);
}

GptConfig read_run_config(const std::string& path) {
  const ConfigNode root = load_yaml(path);
  const ConfigNode* task = root.find("task");
  require(task == nullptr || task->scalar != "tokenizer", ErrorCode::kInvalidArgument, path,
          ": a run of the task 'tokenizer', expected a GPT");
  require(root.find("model") != nullptr, ErrorCode::kInvalidArgument, path,
          ": no section 'model', expected the config of a GPT run");
  return read_model_section(root);
}

// A published size fixes layers, heads and width; the weights say the rest.
GptConfig named_config(const std::string& name, const io::StateDict& state) {
  if (fs::exists(name)) return read_model_section(load_yaml(name));
  require(!name.ends_with(".yaml") && !name.ends_with(".yml"), ErrorCode::kNotFound, name,
          ": no such file");
  const GptConfig size = gpt::gpt_size(name.starts_with("GPT-") ? name.substr(4) : name);
  GptConfig config = infer_gpt_config(state, size.n_head);
  require(config.n_layer == size.n_layer && config.dim == size.dim, ErrorCode::kInvalidArgument,
          state.source, ": has ", config.n_layer, " layers of width ", config.dim, ", but GPT-",
          name, " has ", size.n_layer, " of width ", size.dim);
  return config;
}

}  // namespace

LoadedGpt load_gpt(const std::string& path, const GptOptions& options) {
  const Found found = read_weights(path, options.weights);
  std::optional<GptConfig> config;
  if (!options.config.empty()) {
    config = named_config(options.config, found.state);
  } else if (!found.run_config.empty()) {
    config = read_run_config(found.run_config);
  } else {
    config = infer_gpt_config(found.state, options.n_head);
  }
  if (options.n_head != 0) config->n_head = options.n_head;
  if (options.block_size != 0) config->block_size = options.block_size;
  return {.weights = gpt_weights(*config, found.state),
          .source = found.state.source,
          .weights_key = found.key,
          .step = found.step};
}

}  // namespace vgen::infer
