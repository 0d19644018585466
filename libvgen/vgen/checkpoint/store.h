#pragma once
// The checkpoints of a run: `<run>/checkpoints/step_0001000/` and `<run>/checkpoints/latest`.
//
//   model.safetensors        weights and buffers under their official names
//   ema.safetensors          the same names, averaged weights (only with EMA)
//   discriminator.safetensors, optimizer.safetensors, ...   what the task adds
//   state.json               step, data position, loss scalers, what is being summed for metrics
//   index.json               size and CRC-32C of each file above, and a CRC-32C of its own fields;
//                            written last
//
// Where ranks hold parts of tensors each writes its own, and model.safetensors becomes
// model-00001-of-00004.safetensors and so on (io/shards.h); the index then tells of each tensor the
// whole shape, and which elements lie in which shard. checkpoint/load.h reads either.
//
// A folder without a readable index, with a file that is not as the index says, or with weights
// that it does not list, is no checkpoint: a process killed at any moment leaves the checkpoints
// before it untouched.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/config.h"
#include "vgen/io/json.h"

namespace vgen::dist {
class Group;
}

namespace vgen::checkpoint {

namespace detail {
class HostCopy;
}

struct CheckpointConfig {            // YAML section `checkpoint:`
  int64_t every = 5000;              ///< steps between two checkpoints; the last step has one too
  int64_t keep_last = 3;             ///< newest ones kept; 0 = all
  int64_t keep_best = 1;             ///< kept besides by `best_metric`; 0 = none
  std::string best_metric = "auto";  ///< a validation metric; auto: that of the task
  std::string best_mode = "auto";    ///< which value is best: max, min; auto: as the metric tells
  /// Copy to host memory, go on, and write in the background; takes as much memory as a rank
  /// writes.
  bool async_save = false;
};
template <class Visitor>
void visit_fields(Visitor& v, CheckpointConfig& c) {
  v("every", c.every, at_least(1));
  v("keep_last", c.keep_last, at_least(0));
  v("keep_best", c.keep_best, at_least(0));
  v("best_metric", c.best_metric);
  v("best_mode", c.best_mode, one_of({"auto", "max", "min"}));
  v("async_save", c.async_save);
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
  std::string checksum;  ///< CRC-32C of what the index says: the same one, the same checkpoint
};

/// "step_0001000"
std::string step_name(int64_t step);

/// Reads index.json and checks every file against it, bytes included.
CheckpointInfo check_checkpoint(const std::string& path);

/// `path` is a checkpoint folder, a run folder or its checkpoints folder: the checkpoint itself, or
/// the newest valid one; each invalid one on the way is logged with its reason. Throws Error:
/// kNotFound when there is no checkpoint, or none whose writing was finished; kDataCorrupt when
/// there are some and none is valid, with the problem of each; kUnavailable when a folder cannot be
/// read.
CheckpointInfo find_checkpoint(const std::string& path);
/// The same for all ranks: rank 0 looks and reads, the others trust it, also in its error. They
/// have to find the same index in their `path`. Collective.
CheckpointInfo find_checkpoint(const std::string& path, dist::Group& group);

/// The newest checkpoint of `path`, or `path` if it is one, by its index alone: no other file is
/// looked at. Throws as find_checkpoint().
std::string newest_checkpoint(const std::string& path);

/// Whether find_checkpoint() has something to look at: a folder with an index.json, of a run, or
/// with folders step_*.
bool is_checkpoint_path(const std::string& path);

/// The values of state.json, checked to be an object.
io::Json read_state(const CheckpointInfo& checkpoint);

/// Writes the checkpoints of a run. Not thread-safe.
///
/// With a group the constructor and every method but list() are collective. Tensors that are whole
/// are written by rank 0, parts (NamedTensor) by the ranks that hold them; all ranks name the same
/// tensors in the same order. The folder has to be the same one on every rank.
class CheckpointStore {
 public:
  /// How long a rank looks for what another one has written: network file systems show it late.
  static constexpr int64_t kPatienceMs = 30'000;

  /// `folder` is `<run>/checkpoints`; it is made when missing. `group` must outlive the store. What
  /// is best is to be told by name: with "auto" as the metric none is kept as the best. Throws
  /// Error(kUnavailable) on every rank where the folder is not the same one on all.
  CheckpointStore(std::string folder, CheckpointConfig config, dist::Group* group = nullptr,
                  int64_t patience_ms = kPatienceMs);
  /// Waits for the files that are being written. Without finish() before it, an asynchronous
  /// checkpoint in shards stays unfinished.
  ~CheckpointStore();

  /// Writes, checks in, points `latest` at it, then removes what need not be kept. A valid
  /// checkpoint of the same step is kept as it is. On an error (disk full) the unfinished folder is
  /// removed and the others are untouched: Error(kUnavailable), on every rank, with the rank that
  /// failed.
  ///
  /// With async_save it returns as soon as the tensors are copied, and one thread per rank writes;
  /// a rank that the system gives no thread warns, and writes before it returns.
  /// An error of it is thrown by the next call of any method here. A whole checkpoint is valid as
  /// soon as it is written; one in shards after the first poll(), finish() or save() that finds
  /// every rank's shards written.
  void save(const Snapshot& snapshot);

  /// Completes an asynchronous checkpoint if every rank has written its files, and waits for none.
  /// Cheap: without one under way it does nothing.
  void poll();

  /// Waits for an asynchronous checkpoint and completes it. To be called before the end.
  void finish();

  /// All folders named step_*, newest first, each checked by size only.
  std::vector<CheckpointInfo> list() const;

  const std::string& folder() const { return folder_; }

  /// Called before each file is written, with its name, and with "rotate" before old checkpoints
  /// are removed: where tests kill the process. With async_save by the thread that writes.
  std::function<void(std::string_view)> before_write;

 private:
  struct Writing;
  std::unique_ptr<Writing> begin(const Snapshot& snapshot, const std::string& path);
  void write_own(Writing& writing);
  void complete(const Writing& writing, const std::vector<std::string>& entries);
  void give_up(int64_t step, const std::string& path, Error& error);
  void rotate();
  void announce(std::string_view name) const {
    if (before_write) before_write(name);
  }

  std::string folder_;
  CheckpointConfig config_;
  int64_t patience_ms_;
  std::unique_ptr<dist::Group> alone_;  ///< where no group is given
  dist::Group* group_;
  std::unique_ptr<detail::HostCopy> host_copy_;
  std::unique_ptr<Writing> writing_;  ///< the checkpoint under way
};

}  // namespace vgen::checkpoint
