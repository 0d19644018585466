#pragma once
// Trained VAR transformers, ready for an engine: from runs of vgen, from official checkpoints, from
// any file with their weights.

#include <cstdint>
#include <string>

#include "vgen/infer/find_weights.h"
#include "vgen/infer/model_weights.h"
#include "vgen/var/config.h"

namespace torch::nn {
class Module;
}

namespace vgen::infer {

struct VarWeights : ModelWeights {
  var::VarConfig config = {};
};

/// The weights that lie in a file, not copied. Names beyond those that the config calls for are
/// passed over (buffers, optimizer state). Throws Error(kInvalidArgument) in one line that names
/// what is missing and which dimensions differ.
VarWeights var_weights(const var::VarConfig& config, const io::StateDict& state);

/// The weights of a module, in its memory where that is on the CPU and contiguous.
VarWeights var_weights(const var::VarConfig& config, const torch::nn::Module& module);

struct VarOptions {
  std::string weights = "auto";  ///< auto (EMA of a run), ema, model, or a dict of a .pt file
  /// A YAML file with a `model:` section or its fields alone, or the name of a size: d12, d16, d20,
  /// d24, d30, d36-s. "": the config.yaml of the run, for one file of a run's checkpoint as well;
  /// for other files it is read off the weights.
  std::string config = "";
};

struct LoadedVar {
  VarWeights weights;
  std::string source;       ///< the file that they come from
  std::string weights_key;  ///< "ema", "model", or the dict of a .pt file
  int64_t step = -1;        ///< optimizer steps of a run's checkpoint; -1 = unknown
};

/// Whether tensors are those of a VAR transformer, by their names.
bool is_var(const io::StateDict& state);

/// `path`: as find_weights. Nothing is copied: the tensors lie in the mapped file. Throws Error:
/// kNotFound, kInvalidArgument (another architecture: which dimensions differ; other scales than
/// the weights tell), kDataCorrupt, kUnavailable.
LoadedVar load_var(const std::string& path, const VarOptions& options = {});
/// The same of weights that were found already.
LoadedVar load_var(const FoundWeights& found, const VarOptions& options = {});

/// The config read off the weights: all of it, but for what only training uses. The sides of the
/// scales come from the buffer lvl_1L. Throws Error(kInvalidArgument) for weights of something
/// else.
var::VarConfig infer_var_config(const io::StateDict& state);

/// Throws Error(kInvalidArgument), naming both, where the weights tell by lvl_1L that they were
/// trained with other scales than `config` has. Without that buffer nothing tells. `name`: where
/// the config comes from.
void check_scales(const var::VarConfig& config, const std::string& name,
                  const io::StateDict& state);

}  // namespace vgen::infer
