#pragma once
// Weights from any file that people have: one call, whatever the format and the layout.

#include <string>
#include <vector>

#include "vgen/io/array.h"
#include "vgen/io/safetensors.h"

namespace vgen::io {

/// Named tensors in the order of the file. Row-major, little-endian, each keeps its bytes alive.
struct StateDict {
  std::vector<NamedArray> tensors;
  Metadata metadata;   ///< of safetensors; for .pt the scalars among the tensors, and those
                       ///< beside their dict ("steps", "args.image_size"), as text
  std::string key;     ///< where in the file they lay: "model", "trainer.var_wo_ddp", "" = root
  std::string source;  ///< the path
  std::vector<std::span<const std::byte>> mappings = {};  ///< the files that tensors may lie in

  const Array* find(std::string_view name) const;
};

class SlicedFile;

/// Reads .safetensors, .pt/.pth/.bin (zip and legacy), .npz, the index of a sharded checkpoint
/// (*.index.json), or a folder that holds model.safetensors or such an index. model.safetensors may
/// be in shards (io/shards.h): its own name or that of one shard reads them all. The format is told
/// by the content. Nothing in a file is ever executed.
///
/// `key` says which dict of a .pt file to take:
///   "auto"      the file itself if it maps names to tensors, else the first of: model, module
///               (DeepSpeed), state_dict, ema, trainer.var_wo_ddp, trainer.vae_local
///   "a.b"       the dict at that path: "ema", "discriminator", "trainer.vae_local"
///   "ema,auto"  the first of several that exists
///   "all"       everything, nested names joined by dots: "optimizer.state.0.exp_avg"
/// Of a folder, the key "ema" takes ema.safetensors; files without nesting know "auto" and "all".
///
/// Throws Error: kNotFound (no file, no such key; the keys that exist are listed), kDataCorrupt
/// (damaged or hostile, see the readers), kUnavailable.
StateDict load_state_dict(const std::string& path, const std::string& key = "auto");

/// All tensors of a file that may be in shards.
StateDict read_whole(SlicedFile& file);

}  // namespace vgen::io
