#pragma once
// A run folder: config.yaml (fully resolved), log.txt, metrics.jsonl, tensorboard/, samples/,
// checkpoints/. One process at a time may write to it.

#include <cstdint>
#include <string>
#include <utility>

namespace vgen::checkpoint {

class RunFolder {
 public:
  /// Makes the folder, or opens the one that is there, and locks it. With `may_exist` false a
  /// folder that already holds a run is an error, and so is, in any case, a folder with other
  /// things in it. Nothing is written but the folder itself and its lock. Throws
  /// Error(kInvalidArgument, kUnavailable).
  RunFolder(std::string path, bool may_exist);
  /// The folder that another rank of the run has opened so: nothing is checked or locked.
  explicit RunFolder(std::string path) : path_(std::move(path)) {}
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  /// Makes a folder inside: subfolder("samples").
  std::string subfolder(const std::string& name) const;

  /// True when the folder held a run before it was opened here.
  bool has_run() const { return has_run_; }

 private:
  void lock();

  std::string path_;
  bool has_run_ = false;
  int lock_fd_ = -1;
};

/// Whether a folder was made by a run: it has a config.yaml or checkpoints.
bool is_run_folder(const std::string& path);

/// Leaves only the whole lines of metrics.jsonl whose "step" is at most `step`: a run that goes on
/// from a checkpoint writes the later ones again. No file is fine.
void trim_metrics(const std::string& path, int64_t step);

}  // namespace vgen::checkpoint
