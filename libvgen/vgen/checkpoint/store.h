#pragma once
// The checkpoints of a run: `<run>/checkpoints/step_0001000/` and `<run>/checkpoints/latest`.
//
//   model.safetensors        weights and buffers under their official names
//   ema.safetensors          the same names, averaged weights (only with EMA)
//   discriminator.safetensors, optimizer.safetensors, ...   what the task adds
//   state.json               step, data position, schedule, scaler, seeds
//   index.json               size and CRC-32C of each file above; written last
//
// A folder without a readable index, or with a file that is not as the index says, is no
// checkpoint: a process killed at any moment leaves the checkpoints before it untouched.

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/config.h"
#include "vgen/io/json.h"

namespace vgen::checkpoint {

struct CheckpointConfig {            // YAML section `checkpoint:`
  int64_t every = 5000;              ///< steps between two checkpoints; the last step has one too
  int64_t keep_last = 3;             ///< newest ones kept; 0 = all
  int64_t keep_best = 1;             ///< kept besides by `best_metric`; 0 = none
  std::string best_metric = "psnr";  ///< a validation metric
  std::string best_mode = "max";     ///< which value is best: max, min
};
template <class Visitor>
void visit_fields(Visitor& v, CheckpointConfig& c) {
  v("every", c.every, at_least(1));
  v("keep_last", c.keep_last, at_least(0));
  v("keep_best", c.keep_best, at_least(0));
  v("best_metric", c.best_metric);
  v("best_mode", c.best_mode, one_of({"max", "min"}));
}

/// One .safetensors file of a checkpoint.
struct TensorFile {
  std::string name;  ///< "model.safetensors"
  NamedTensors tensors;
  io::Metadata metadata = {};
};

/// What a checkpoint is made of.
struct Snapshot {
  int64_t step = 0;
  std::vector<TensorFile> files;
  io::Json state;                         ///< becomes state.json
  std::map<std::string, double> metrics;  ///< validation at this step; empty = not validated
};

/// A folder that looks like a checkpoint.
struct CheckpointInfo {
  std::string path;
  int64_t step = 0;
  std::string problem;  ///< why it is not valid; empty = valid
  std::map<std::string, double> metrics;
};

/// "step_0001000"
std::string step_name(int64_t step);

/// Reads index.json and checks every file against it, bytes included.
CheckpointInfo check_checkpoint(const std::string& path);

/// `path` is a checkpoint folder, a run folder or its checkpoints folder: the checkpoint itself, or
/// the newest valid one; each invalid one on the way is logged with its reason. Throws
/// Error(kNotFound, kDataCorrupt).
CheckpointInfo find_checkpoint(const std::string& path);

/// The values of state.json, checked to be an object.
io::Json read_state(const CheckpointInfo& checkpoint);

/// One process writes. Not thread-safe.
class CheckpointStore {
 public:
  /// `folder` is `<run>/checkpoints`; it is made when missing.
  CheckpointStore(std::string folder, CheckpointConfig config);

  /// Writes, checks in, points `latest` at it, then removes what need not be kept. A valid
  /// checkpoint of the same step is kept as it is. On an error (disk full) the unfinished folder is
  /// removed and the others are untouched: Error(kUnavailable).
  void save(const Snapshot& snapshot);

  /// All folders named step_*, newest first, each checked by size only.
  std::vector<CheckpointInfo> list() const;

  const std::string& folder() const { return folder_; }

  /// Called before each file is written, with its name, and with "rotate" before old checkpoints
  /// are removed: where tests kill the process.
  std::function<void(std::string_view)> before_write;

 private:
  void write_files(const Snapshot& snapshot, const std::string& path);
  void rotate();
  void announce(std::string_view name) const {
    if (before_write) before_write(name);
  }

  std::string folder_;
  CheckpointConfig config_;
};

}  // namespace vgen::checkpoint
