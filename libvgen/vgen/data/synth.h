#pragma once
// `vgen data synth`: a dataset of procedural pictures of any size, for scale tests and for learning
// something from: a shape of one colour and texture on a background, and a caption that says so.
//
// There are 10 shapes, 10 colours and 10 textures. With up to 10 classes the class is the shape,
// with up to 100 it is shape and colour, with up to 1000 shape, colour and texture; what the class
// leaves open is drawn at random, as are size, place, turn, background and light. Picture i depends
// on (seed, classes, sizes, i) alone: not on the count, the layout or the workers.

#include <cstdint>
#include <string>
#include <vector>

#include "vgen/core/config.h"
#include "vgen/data/image.h"

namespace vgen::data {

inline constexpr int64_t kMaxSynthClasses = 1000;

struct SynthConfig {
  std::string out = {};  ///< folder or .tar to make; must not exist yet
  std::string layout =
      "folder";                 ///< folder: class folders; tar: one tar of them; shards: see below
  int64_t count = 1000;         ///< images
  int64_t classes = 10;         ///< 1 to 1000
  int64_t size = 256;           ///< pixels a side
  int64_t max_size = 0;         ///< above `size`: width and height are drawn from [size, max_size]
  std::string format = "jpeg";  ///< jpeg, png
  int64_t quality = 90;         ///< of a JPEG
  int64_t shard_size = 1000;    ///< images in a shard
  uint64_t seed = 0;
  int64_t workers = 2;  ///< drawing threads
};

struct SynthPicture {
  Image image;
  int64_t label = 0;
  std::string class_name;  ///< "041-blue-star": the prefix keeps byte order = order of the labels
  std::string caption;     ///< "a large striped blue star at the top left on a navy background"
};

/// Picture `index` of the dataset, label = index % classes. Throws Error(kInvalidArgument) for a
/// config out of range. May be called from any thread.
SynthPicture synth_picture(const SynthConfig& config, int64_t index);

struct SynthReport {
  int64_t images = 0;
  uint64_t size_bytes = 0;  ///< of the files written
  int64_t files = 0;
  double seconds = 0;
};

/// Writes the dataset; it appears at `out` whole or not at all (a folder through a temporary one
/// beside it). Shows its progress.
///
///   folder  <class>/<index>.jpg, and captions.jsonl with LlamaGen's fields image_path and text
///   tar     the same class folders in one tar
///   shards  00000.tar, 00001.tar, ... as img2dataset writes them: <key>.jpg, <key>.json, <key>.txt
///           of one picture after another; the json has caption, key, status, width, height, class
///           and label, the txt is the caption
///
/// Throws Error(kInvalidArgument) when `out` exists, Error(kUnavailable, kNotFound) when it cannot
/// be written.
SynthReport write_synth(const SynthConfig& config);

}  // namespace vgen::data
