#pragma once
// What the tests of every room share; no LibTorch.

#include <functional>
#include <string>
#include <vector>

namespace vgen::test {

/// Path of a golden file: golden("vq16/images.npy"). Fails the test when it is missing.
std::string golden(const std::string& name);

/// A path inside the project: project_path("data/digits.tar.gz").
std::string project_path(const std::string& name);

/// The message of the Error that `body` throws. Fails the test when it throws none, or one of more
/// than one line.
std::string error_of(const std::function<void()>& body);

/// A new empty folder, removed with all it holds.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  /// path()/name
  std::string operator/(const std::string& name) const;

 private:
  std::string path_;
};

void write_file(const std::string& path, const std::string& bytes);
std::string read_file(const std::string& path);

/// Names in a folder, sorted.
std::vector<std::string> files_in(const std::string& folder);

}  // namespace vgen::test
