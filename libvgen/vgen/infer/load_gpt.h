#pragma once
// Trained GPTs, ready for an engine: from runs of vgen, from official checkpoints, from any file
// with their weights.

#include <cstdint>
#include <string>

#include "vgen/infer/find_weights.h"
#include "vgen/infer/gpt_weights.h"

namespace vgen::infer {

struct GptOptions {
  /// auto: of a run the averaged weights (EMA) where there are any; of other files what the
  /// official samplers take: "model", else "module", "state_dict", or the file itself; never EMA.
  /// ema, model: these or none. Else the name of a dict inside a .pt file.
  std::string weights = "auto";
  /// A YAML file with a `model:` section or its fields alone, or a published size: B, L, XL, XXL,
  /// XXXL, 1B, 3B, 7B. "": the config.yaml of a run; for other files see infer_gpt_config.
  std::string config = "";
  int64_t n_head = 0;      ///< 0 = of the config, or as infer_gpt_config finds it
  int64_t block_size = 0;  ///< image tokens; 0 = of the config, or as infer_gpt_config finds it
};

/// The codes that a GPT learned from, as far as its files tell.
struct TrainedGrid {
  int64_t block_size = 0;            ///< image tokens; 0 = unknown
  int64_t downsample = 0;            ///< pixels per code along each side; 0 = unknown
  std::string block_size_from = {};  ///< what tells: "args.image_size", or the path of a config
  std::string downsample_from = {};  ///< the same
};

struct LoadedGpt {
  GptWeights weights;
  std::string source;        ///< the file that they come from
  std::string weights_key;   ///< "ema", "model", or the dict of a .pt file
  int64_t step = -1;         ///< optimizer steps of a run's checkpoint; -1 = unknown
  TrainedGrid trained = {};  ///< which the config need not agree with: GptOptions::block_size
};

/// `path`: a run folder (its newest valid checkpoint), a checkpoint folder, or a file or folder
/// that io::load_state_dict reads. Nothing is copied: the tensors lie in the mapped file. Throws
/// Error: kNotFound (no such file, no such weights in it), kInvalidArgument (another architecture:
/// which dimensions differ), kDataCorrupt, kUnavailable.
LoadedGpt load_gpt(const std::string& path, const GptOptions& options = {});
/// The same of weights that were found already.
LoadedGpt load_gpt(const FoundWeights& found, const GptOptions& options = {});

/// The config read off the weights. Widths, layers, vocabulary and classes follow from the shapes.
/// Two numbers are in no shape: the heads, taken from the published size with these layers and
/// width, and the image tokens, taken from the training arguments in a .pt file (image_size,
/// downsample_size), else 256. Nor does a shape tell whether the last row of the class table is the
/// null class, as it is unless class_dropout_prob was 0: it is taken for that, except where the
/// training arguments have as many classes (num_classes) as there are rows. Throws
/// Error(kInvalidArgument) for weights of something else, and where the heads stay unknown:
/// --n-head is to say.
gpt::GptConfig infer_gpt_config(const io::StateDict& state, int64_t n_head = 0);

/// Layers and width, for which nobody needs to know the heads. Throws as infer_gpt_config.
struct GptSize {
  int64_t n_layer = 0, dim = 0;
};
GptSize infer_gpt_size(const io::StateDict& state);

/// What the training arguments in a .pt file say (image_size, downsample_size).
TrainedGrid infer_trained_grid(const io::StateDict& state);

}  // namespace vgen::infer
