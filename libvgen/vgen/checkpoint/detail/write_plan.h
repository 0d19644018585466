#pragma once
// Which rank writes what of a checkpoint.

#include <map>
#include <string>
#include <vector>

#include "vgen/checkpoint/store.h"
#include "vgen/io/shards.h"

namespace vgen::checkpoint::detail {

struct WritePlan {
  /// Of each file that becomes shards, "model.safetensors": where its tensors will lie.
  std::map<std::string, std::vector<io::SlicedTensor>> tensors;
  /// What this rank writes: files under their final names. The tensors are the snapshot's.
  std::vector<TensorFile> own;

  bool is_sharded() const { return !tensors.empty(); }
};

/// What must be the same on all ranks: files, names, dtypes, shapes and which of them are parts.
std::string outline(const Snapshot& snapshot);

/// Files without parts are rank 0's, whole. Of the others each rank writes a shard with its parts;
/// what several ranks have alike, the lowest of them; whole tensors rank 0. Throws
/// Error(kInternal) when the parts are not the tensors. Collective: snapshots of one outline.
WritePlan plan_writing(const Snapshot& snapshot, dist::Group& group);

}  // namespace vgen::checkpoint::detail
