#include "vgen/infer/load_gpt.h"

#include <filesystem>
#include <optional>

#include "vgen/core/config.h"

namespace vgen::infer {

namespace {

namespace fs = std::filesystem;
using gpt::GptConfig;

GptConfig read_model_section(const ConfigNode& root) {
  const ConfigNode* model = root.find("model");
  return read_config<GptConfig>(model == nullptr ? root : *model);
}

GptConfig read_run_config(const std::string& path) {
  const ConfigNode root = load_yaml(path);
  const ConfigNode* task = root.find("task");
  require(task == nullptr || task->scalar == "gpt", ErrorCode::kInvalidArgument, path,
          ": a run of the task '", task == nullptr ? "" : printable(task->scalar),
          "', expected a GPT");
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
  const GptSize found = infer_gpt_size(state);
  require(found.n_layer == size.n_layer && found.dim == size.dim, ErrorCode::kInvalidArgument,
          state.source, ": has ", found.n_layer, " layers of width ", found.dim, ", but GPT-", name,
          " has ", size.n_layer, " of width ", size.dim);
  return infer_gpt_config(state, size.n_head);
}

// Arguments in the weights' own file come first, then the config of their run.
TrainedGrid find_trained_grid(const FoundWeights& found, const std::string& config) {
  TrainedGrid grid = infer_trained_grid(found.state);
  if (grid.block_size > 0) return grid;
  const std::string path = found.run_config.empty() ? config : found.run_config;
  if (!fs::exists(path)) return {};
  const ConfigNode root = load_yaml(path);
  const ConfigNode* model = root.find("model");
  const ConfigNode* size = (model == nullptr ? &root : model)->find("block_size");
  if (size != nullptr && parse_int(size->scalar, grid.block_size)) grid.block_size_from = path;
  return grid;
}

}  // namespace

LoadedGpt load_gpt(const std::string& path, const GptOptions& options) {
  return load_gpt(find_weights(path, options.weights, kTransformerKeys), options);
}

LoadedGpt load_gpt(const FoundWeights& found, const GptOptions& options) {
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
          .weights_key = found.name,
          .step = found.step,
          .trained = find_trained_grid(found, options.config)};
}

}  // namespace vgen::infer
