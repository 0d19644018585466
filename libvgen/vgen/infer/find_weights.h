#pragma once
// Where the weights of a trained model lie: the one way from a path to named tensors, for every
// kind of model.

#include <cstdint>
#include <string>

#include "vgen/io/state_dict.h"

namespace vgen::infer {

/// What "auto" takes of files that are no runs: a tokenizer's as the official evaluation does, a
/// transformer's as the official samplers do, never the averages.
inline constexpr const char* kTokenizerKeys = "ema,model,state_dict,auto";
inline constexpr const char* kTransformerKeys = "model,module,state_dict,trainer.var_wo_ddp,auto";

struct FoundWeights {
  io::StateDict state;
  std::string name;   ///< "ema", "model", or the dict of a .pt file
  int64_t step = -1;  ///< optimizer steps of a run's checkpoint; -1 = unknown
  /// Path of the run's config.yaml, also for one file of a run's checkpoint; "" = none.
  std::string run_config;
};

/// `path`: a run folder (its newest valid checkpoint), a checkpoint folder, or a file or folder
/// that io::load_state_dict reads.
/// `weights`: "auto" (of a run the averaged weights where there are any, of other files the first
/// dict of `auto_keys`), "ema", "model" (these or none), or the name of a dict inside a .pt file.
/// `auto_keys`: a key of io::load_state_dict. Throws Error: kNotFound (no such file, no such
/// weights in it), kDataCorrupt, kUnavailable.
FoundWeights find_weights(const std::string& path, const std::string& weights,
                          const std::string& auto_keys);

}  // namespace vgen::infer
