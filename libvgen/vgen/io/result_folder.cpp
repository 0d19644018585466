#include "vgen/io/result_folder.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <vector>

#include "vgen/core/error.h"

namespace vgen::io {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPartial = ".partial-";

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  require(!error, ErrorCode::kUnavailable, folder, ": cannot be read: ", error.message());
  return names;
}

}  // namespace

ResultFolder::ResultFolder(std::string path, Options options)
    : path_(std::move(path)), options_(std::move(options)) {
  require(!path_.empty(), ErrorCode::kInvalidArgument, "cannot write to a folder without a name");
  std::error_code error;
  if (fs::exists(path_, error)) {
    require(fs::is_directory(path_, error), ErrorCode::kInvalidArgument, path_,
            ": exists and is not a folder, expected a folder to write to");
    check_contents();
  } else {
    fs::create_directories(path_, error);
    require(!error, ErrorCode::kUnavailable, path_, ": cannot be made: ", error.message());
    was_made_ = true;
  }
  partial_ = str_cat(path_, "/", kPartial, "XXXXXX");
  if (::mkdtemp(partial_.data()) == nullptr) {
    const int error_number = errno;
    if (was_made_) fs::remove(path_, error);
    throw_error(ErrorCode::kUnavailable, path_,
                ": cannot be written to: ", errno_text(error_number));
  }
}

ResultFolder::~ResultFolder() {
  std::error_code error;
  fs::remove_all(partial_, error);
  if (was_made_ && !is_committed_) fs::remove(path_, error);  // only when it is empty
}

void ResultFolder::check_contents() const {
  for (const std::string& name : names_in(path_)) {
    const bool is_ours = name.starts_with(kPartial) || options_.is_result(name);
    require(is_ours, ErrorCode::kInvalidArgument, path_, ": holds other things than results, '",
            printable(name), "'; choose another folder");
    require(options_.may_replace, ErrorCode::kInvalidArgument, path_,
            ": holds results already; use --force to replace them, or choose another folder");
  }
}

void ResultFolder::write(const std::string& name, std::span<const std::byte> bytes) const {
  const auto fail = [&](int error_number) {
    throw_error(ErrorCode::kUnavailable, path_, ": cannot write ", name, ": ",
                errno_text(error_number));
  };
  const int fd = ::open(file(name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) fail(errno);
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      const int error_number = count < 0 ? errno : ENOSPC;
      ::close(fd);
      fail(error_number);
    }
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
  if (::close(fd) != 0) fail(errno);
}

void ResultFolder::commit() {
  const auto sync = [&] {
    const int fd = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool is_synced = fd >= 0 && ::syncfs(fd) == 0;
    const int error_number = errno;
    if (fd >= 0) ::close(fd);
    require(is_synced, ErrorCode::kUnavailable, path_,
            ": cannot be written to: ", errno_text(error_number));
  };
  const std::vector<std::string> names = names_in(partial_);
  sync();
  std::error_code error;
  fs::remove(path_ + "/" + options_.last, error);  // from here on the older results are not whole
  for (const std::string& name : names_in(path_)) {
    const std::string path = path_ + "/" + name;
    if (path == partial_ || (!name.starts_with(kPartial) && !options_.is_result(name))) continue;
    fs::remove_all(path, error);
  }
  const auto move_in = [&](const std::string& name) {
    fs::rename(file(name), path_ + "/" + name, error);
    require(!error, ErrorCode::kUnavailable, path_, ": cannot write ", name, ": ", error.message());
  };
  for (const std::string& name : names) {
    if (name != options_.last) move_in(name);
  }
  if (fs::exists(file(options_.last), error)) move_in(options_.last);
  is_committed_ = true;
  fs::remove(partial_, error);
  sync();
}

}  // namespace vgen::io
