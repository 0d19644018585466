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
/// Error: also kNotFound where the index lists no such file, kDataCorrupt for files that are not as
/// the index says.
void load_file(const CheckpointInfo& checkpoint, const std::string& file,
               const NamedTensors& targets, const LoadOptions& options = {});

}  // namespace vgen::checkpoint
