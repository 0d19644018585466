#pragma once
// A folder of results that appear together or not at all.

#include <cstddef>
#include <functional>
#include <span>
#include <string>

namespace vgen::io {

/// Files are written into "<path>/.partial-<random>" and moved into <path> by commit(), the one
/// that stands for the whole last. Without a commit (an error, an exception) the destructor removes
/// what was written, and the folder itself if it was made here. A kill -9 can leave the hidden
/// folder behind, never half of the results under their names: it works inside the folder, so that
/// <path> may be a mount point.
class ResultFolder {
 public:
  struct Options {
    bool may_replace = false;  ///< older results in the folder may be replaced
    std::string last;          ///< moved in last: while it is there, the results are complete
    /// Whether a name is that of a result. Nothing else is ever replaced or removed.
    std::function<bool(const std::string& name)> is_result;
  };

  /// Makes the folder, also those above it. Throws Error: kInvalidArgument for a folder that is not
  /// empty, without may_replace, and in any case for one that holds other things than results;
  /// kUnavailable where nothing can be written.
  ResultFolder(std::string path, Options options);
  ~ResultFolder();
  ResultFolder(const ResultFolder&) = delete;
  ResultFolder& operator=(const ResultFolder&) = delete;

  /// Where to write a result until commit().
  std::string file(const std::string& name) const { return partial_ + "/" + name; }

  /// Writes a whole result. Several threads may write at once. Throws Error(kUnavailable).
  void write(const std::string& name, std::span<const std::byte> bytes) const;

  /// Flushes, removes the older results, moves the new ones in. Call once, last.
  void commit();

  const std::string& path() const { return path_; }

 private:
  void check_contents() const;

  std::string path_;
  std::string partial_;
  Options options_;
  bool was_made_ = false;
  bool is_committed_ = false;
};

}  // namespace vgen::io
