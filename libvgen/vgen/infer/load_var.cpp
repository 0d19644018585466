#include "vgen/infer/load_var.h"

#include <cmath>
#include <filesystem>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/config.h"
#include "vgen/infer/detail/shapes.h"

namespace vgen::infer {

namespace {

namespace fs = std::filesystem;
using var::VarConfig;

constexpr const char* kWhat = "a VAR transformer";
constexpr const char* kFirstBlock = "blocks.0.attn.mat_qkv.weight";
constexpr int64_t kMaxDepth = 4096;

NamedShapes expected_tensors(const VarConfig& c) {
  const int64_t width = c.width();
  NamedShapes list{{"pos_start", {1, c.scale_end(0), width}},
                   {"pos_1LC", {1, c.num_tokens(), width}},
                   {"word_embed.weight", {width, c.z_channels}},
                   {"word_embed.bias", {width}},
                   {"class_emb.weight", {c.num_classes + 1, width}},
                   {"lvl_embed.weight", {c.num_scales(), width}},
                   {"head_nm.ada_lin.1.weight", {2 * width, width}},
                   {"head_nm.ada_lin.1.bias", {2 * width}},
                   {"head.weight", {c.codebook_size, width}},
                   {"head.bias", {c.codebook_size}}};
  const auto add_linear = [&](const std::string& name, int64_t out, int64_t in) {
    list.push_back({name + ".weight", {out, in}});
    list.push_back({name + ".bias", {out}});
  };
  if (c.shared_adaln) add_linear("shared_ada_lin.1", 6 * width, width);
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string block = str_cat("blocks.", i, ".");
    if (c.attn_l2_norm) list.push_back({block + "attn.scale_mul_1H11", {1, c.heads(), 1, 1}});
    list.push_back({block + "attn.q_bias", {width}});
    list.push_back({block + "attn.v_bias", {width}});
    list.push_back({block + "attn.mat_qkv.weight", {3 * width, width}});
    add_linear(block + "attn.proj", width, width);
    add_linear(block + "ffn.fc1", c.ffn_dim(), width);
    add_linear(block + "ffn.fc2", width, c.ffn_dim());
    if (c.shared_adaln) {
      list.push_back({block + "ada_gss", {1, 1, 6, width}});
    } else {
      add_linear(block + "ada_lin.1", 6 * width, width);
    }
  }
  return list;
}

// The sides of the scales: as many tokens of scale k as the side's square.
std::vector<int64_t> read_scales(const io::StateDict& state, int64_t num_scales, int64_t length) {
  const io::Array* level = state.find("lvl_1L");
  require(level != nullptr && level->dtype == io::Dtype::kInt64 && level->num_elements() == length,
          ErrorCode::kInvalidArgument, state.source,
          ": no tensor 'lvl_1L' that tells the scale of each of the ", length,
          " tokens; give a config with model.patch_nums");
  std::vector<int64_t> count(static_cast<size_t>(num_scales));
  for (const int64_t k : level->as<int64_t>()) {
    require(k >= 0 && k < num_scales, ErrorCode::kInvalidArgument, state.source,
            ": lvl_1L has scale ", k, ", but lvl_embed.weight has ", num_scales);
    ++count[static_cast<size_t>(k)];
  }
  std::vector<int64_t> sides;
  for (const int64_t tokens : count) {
    const auto side = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(tokens))));
    require(side > 0 && side * side == tokens, ErrorCode::kInvalidArgument, state.source,
            ": a scale of ", tokens, " tokens in lvl_1L, expected a square number");
    sides.push_back(side);
  }
  return sides;
}

VarConfig read_model_section(const ConfigNode& root) {
  const ConfigNode* model = root.find("model");
  return read_config<VarConfig>(model == nullptr ? root : *model);
}

VarConfig named_config(const std::string& name) {
  if (fs::exists(name)) return read_model_section(load_yaml(name));
  require(!name.ends_with(".yaml") && !name.ends_with(".yml"), ErrorCode::kNotFound, name,
          ": no such file");
  return var::var_size(name);
}

VarConfig run_config(const std::string& path) {
  const ConfigNode root = load_yaml(path);
  const ConfigNode* task = root.find("task");
  require(task != nullptr && task->scalar == "var", ErrorCode::kInvalidArgument, path,
          ": a run of the task '", task == nullptr ? "tokenizer" : printable(task->scalar),
          "', expected 'var'");
  return read_model_section(root);
}

}  // namespace

VarConfig infer_var_config(const io::StateDict& state) {
  const detail::Shapes shapes(state, kWhat);
  VarConfig config;
  config.depth = shapes.count("blocks.", ".attn.mat_qkv.weight", kMaxDepth);
  const std::vector<int64_t>& positions = shapes.at("pos_1LC", 3);
  const int64_t width = positions[2];
  shapes.at(kFirstBlock, 2);
  config.dim = width;
  config.z_channels = shapes.at("word_embed.weight", 2)[1];
  config.num_classes = shapes.rows("class_emb.weight", {width}) - 1;
  config.codebook_size = shapes.rows("head.weight", {width});
  config.shared_adaln = shapes.has("shared_ada_lin.1.weight");
  config.mlp_ratio = static_cast<double>(shapes.rows("blocks.0.ffn.fc1.weight", {width})) /
                     static_cast<double>(width);
  // Older files know no unit vectors, and no scale of theirs by head.
  config.attn_l2_norm = shapes.has("blocks.0.attn.scale_mul_1H11");
  // Without them no shape tells the number of heads: it is the depth, as in all published models.
  if (config.attn_l2_norm) config.n_head = shapes.at("blocks.0.attn.scale_mul_1H11", 4)[1];
  config.patch_nums = read_scales(state, shapes.rows("lvl_embed.weight", {width}), positions[1]);
  try {
    config.validate();
  } catch (Error& error) {
    error.add_context(state.source);
    throw;
  }
  return config;
}

void check_scales(const VarConfig& config, const std::string& name, const io::StateDict& state) {
  const io::Array* level = state.find("lvl_1L");
  if (level == nullptr || level->dtype != io::Dtype::kInt64) return;
  const int64_t num_scales = detail::Shapes(state, kWhat).at("lvl_embed.weight", 2)[0];
  const std::vector<int64_t> own = read_scales(state, num_scales, level->num_elements());
  require(own == config.patch_nums, ErrorCode::kInvalidArgument, state.source,
          ": was trained with the scales ", format_shape(own), ", but model.patch_nums of ", name,
          " is ", format_shape(config.patch_nums),
          "; give a config with the scales of the weights");
}

VarWeights var_weights(const VarConfig& config, const io::StateDict& state) {
  config.validate();
  return {collect_weights(expected_tensors(config), state, "this VAR transformer"), config};
}

VarWeights var_weights(const VarConfig& config, const torch::nn::Module& module) {
  io::StateDict state;
  state.source = "model";
  state.tensors = checkpoint::as_arrays(checkpoint::named_state(module));
  return var_weights(config, state);
}

bool is_var(const io::StateDict& state) { return state.find(kFirstBlock) != nullptr; }

LoadedVar load_var(const std::string& path, const VarOptions& options) {
  return load_var(find_weights(path, options.weights, kTransformerKeys), options);
}

LoadedVar load_var(const FoundWeights& found, const VarOptions& options) {
  const std::string& name = options.config.empty() ? found.run_config : options.config;
  const VarConfig config = !options.config.empty() ? named_config(name)
                           : !name.empty()         ? run_config(name)
                                                   : infer_var_config(found.state);
  if (!name.empty()) check_scales(config, name, found.state);
  return {.weights = var_weights(config, found.state),
          .source = found.state.source,
          .weights_key = found.name,
          .step = found.step};
}

}  // namespace vgen::infer
