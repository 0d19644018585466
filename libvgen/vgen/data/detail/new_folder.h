#pragma once
// A folder that appears whole or not at all.

#include <cstddef>
#include <span>
#include <string>

namespace vgen::data::detail {

/// Files are written into ".<name>.<pid>.tmp" beside `path`; commit() flushes them and renames the
/// folder. Without a commit the destructor removes it. Throws Error(kNotFound) for a missing parent
/// folder, Error(kUnavailable) for a full disk or no permission, with `path`.
class NewFolder {
 public:
  explicit NewFolder(const std::string& path);
  ~NewFolder();
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  const std::string& temp() const { return temp_; }  ///< where other writers put their files
  void make_subfolder(const std::string& name);
  void write(const std::string& name, std::span<const std::byte> bytes);
  /// `path` must not exist, or be an empty folder. Call once, last.
  void commit();

 private:
  [[noreturn]] void fail(int error_number) const;

  std::string path_, temp_;
};

}  // namespace vgen::data::detail
