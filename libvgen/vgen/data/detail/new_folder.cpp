#include "vgen/data/detail/new_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "vgen/core/error.h"

namespace vgen::data::detail {
namespace {
namespace fs = std::filesystem;
}

NewFolder::NewFolder(const std::string& path) {
  path_ = fs::absolute(path).lexically_normal().string();
  while (path_.size() > 1 && path_.ends_with('/')) path_.pop_back();
  const fs::path parent = fs::path(path_).parent_path();
  require(fs::is_directory(parent), ErrorCode::kNotFound, path_, ": there is no folder ",
          parent.string());
  const std::string name = fs::path(path_).filename().string();
  const std::string temp = (parent / str_cat(".", name, ".", ::getpid(), ".tmp")).string();
  if (::mkdir(temp.c_str(), 0777) != 0) fail(errno);
  temp_ = temp;
}

NewFolder::~NewFolder() {
  std::error_code ignored;
  if (!temp_.empty()) fs::remove_all(temp_, ignored);
}

void NewFolder::make_subfolder(const std::string& name) {
  if (::mkdir(str_cat(temp_, "/", name).c_str(), 0777) != 0) fail(errno);
}

void NewFolder::write(const std::string& name, std::span<const std::byte> bytes) {
  std::FILE* file = std::fopen(str_cat(temp_, "/", name).c_str(), "wbe");
  if (!file) fail(errno);
  const bool is_written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  const int write_error = errno;
  if (std::fclose(file) != 0) fail(errno);
  if (!is_written) fail(write_error);
}

void NewFolder::commit() {
  // Data before the name: one sync of the file system instead of one for each file.
  const int fd = ::open(temp_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail(errno);
  const int sync_error = ::syncfs(fd) == 0 ? 0 : errno;
  ::close(fd);
  if (sync_error) fail(sync_error);
  if (::rename(temp_.c_str(), path_.c_str()) != 0) fail(errno);
  temp_.clear();
}

void NewFolder::fail(int error_number) const {
  throw_error(ErrorCode::kUnavailable, path_, ": cannot be written: ", errno_text(error_number));
}

}  // namespace vgen::data::detail
