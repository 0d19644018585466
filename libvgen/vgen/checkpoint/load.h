#pragma once
// The tensors of a checkpoint, whatever the number of ranks that wrote it and of those that read.

#include <string>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/checkpoint/store.h"

namespace vgen::checkpoint {

/// Copies what a file of the checkpoint ("model.safetensors", whole or in shards) has for the
/// targets, which may be whole tensors or parts: as load_into() does, with the same errors. Only
/// what the targets need is read, and nothing is held in memory besides. Every rank loads for
/// itself. A target without elements reads nothing, but its name and shape must be there. Throws
/// Error: also kNotFound without such a file, kDataCorrupt for shards that do not fit the index.
LoadReport load_file(const CheckpointInfo& checkpoint, const std::string& file,
                     const NamedTensors& targets, const LoadOptions& options = {});

/// All tensors of a file of the checkpoint. Those that lie in several shards are copied, others
/// stay in the mapped file.
io::StateDict read_file(const CheckpointInfo& checkpoint, const std::string& file);

}  // namespace vgen::checkpoint
