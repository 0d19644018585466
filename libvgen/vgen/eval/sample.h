#pragma once
// Images from a trained GPT or VAR and its tokenizer: `vgen sample`.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "vgen/infer/gpt_generate.h"
#include "vgen/infer/load_gpt.h"
#include "vgen/infer/load_tokenizer.h"
#include "vgen/infer/var_generate.h"
#include "vgen/io/json.h"

namespace vgen::eval {

/// How to draw. What is left open has the default of the kind of model.
struct SampleSettings {
  /// GPT: guidance counts from 1, 4 by default. VAR: from 0, see infer::VarSettings, 4 by default.
  std::optional<double> cfg_scale = {};
  int64_t cfg_interval = -1;          ///< GPT alone: as infer::GenerateSettings
  double temperature = 1;             ///< logits are divided by it
  std::optional<int64_t> top_k = {};  ///< 0 = off; 2000 by default, VAR 900
  std::optional<double> top_p = {};   ///< 1 = off, the default; VAR 0.95
  bool more_smooth = false;           ///< VAR alone: as infer::VarSettings
  uint64_t seed = 0;
};
infer::GenerateSettings gpt_settings(const SampleSettings& settings);
infer::VarSettings var_settings(const SampleSettings& settings);

/// What both ways of sampling need.
struct SampleConfig {
  std::string checkpoint;           ///< as infer::find_weights: a class-conditional GPT, or VAR
  infer::GptOptions gpt;            ///< weights and config of either; heads
  std::string tokenizer;            ///< as infer::load_tokenizer
  infer::TokenizerOptions decoder;  ///< weights, config, precision; its device is `device`
  SampleSettings settings;          ///< guidance, filter, seed
  std::string precision = "bf16";   ///< of the weights: fp32, bf16, int8
  std::string device = "auto";      ///< as parse_device
  int64_t image_size = 0;           ///< pixels, a multiple of the tokenizer's step; 0 = as trained
  bool any_size = false;            ///< GPT: warn, not refuse, where its files tell another grid
  int64_t batch_size = 8;           ///< images at a time; on the CPU it changes no code
  int64_t threads = 0;              ///< of LibTorch; 0 = one per core
};

struct SampleImagesConfig {
  SampleConfig model;
  std::string classes;          ///< as infer::parse_classes
  std::string class_names;      ///< file with a name per line; "" = ImageNet's for 1000 classes
  int64_t count = 1;            ///< images of each class
  bool show_scales = false;     ///< VAR: also what the picture was after each scale
  std::string out;              ///< folder for the results
  bool must_overwrite = false;  ///< replace older results in `out`
};

struct SampleResult {
  int64_t images = 0;
  int64_t tokens = 0;
  double load_seconds = 0;  ///< until the first token can be drawn
  /// From the start of the process until the first token was drawn; none without /proc.
  std::optional<double> first_token_seconds = {};
  double generate_seconds = 0;  ///< drawing tokens
  double decode_seconds = 0;    ///< tokens to pixels
  double seconds = 0;           ///< all of it, writing too
};

/// Image i, i = 0, 1, ..., shows class i / count of the list. On the CPU its codes depend on the
/// seed, on i and on the settings, not on what else is drawn with it. Into `out`
/// (io/result_folder.h):
///
///   000000.png ...   each with its parameters as a PNG text chunk, JSON in ASCII
///   grid.png         all of them (at most 400), one row per class
///   codes.npy        int64 (images, h, w); of VAR (images, L), the scales one after another
///   000000_scales.png ...  with show_scales: the image after each scale, coarse to fine
///   samples.json     label, name, file of each image, and the settings; written last
///
/// Throws Error; then `out` is as it was.
SampleResult sample_images(const SampleImagesConfig& config);

struct SampleFidConfig {
  SampleConfig model;
  int64_t num_images = 50000;
  int64_t eval_size = 256;  ///< pixels of the stored images
  std::string npz;          ///< the result: `arr_0`, uint8 (num_images, eval_size, eval_size, 3)
  int64_t rank = 0, world_size = 1;
  int64_t local_rank = 0;  ///< among the processes of this machine: as device_for_local_rank
};

/// The images that FID is computed of (ADM's evaluator reads the .npz): image i shows class i mod
/// num_classes, 50 of each of 1000 for 50,000. Images of another size are resized by LibTorch's
/// bicubic without antialias, then rounded, as LlamaGen's sample_c2i_ddp.py does (quirk).
///
/// Work is cut into parts of 64 images, stored in the folder "<npz>.parts" and shared out to
/// world_size processes that see the same folder; none talks to another. Whoever finds all parts
/// done writes the .npz and removes them. A run that was killed, or that found the disk full, goes
/// on where it was when called again. The folder's settings.json has what the images depend on, the
/// fingerprints of the models too (model_identity.h); a continuation that differs is
/// Error(kInvalidArgument) with both values. Throws Error.
SampleResult sample_fid(const SampleFidConfig& config);

/// The settings: what is written into files. What was left open is "auto" there.
io::Json settings_json(const SampleConfig& config);
/// One line for people.
std::string format_result(const SampleResult& result);

}  // namespace vgen::eval
