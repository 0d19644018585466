#include "vgen/io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <random>

#include "vgen/core/error.h"

namespace vgen::io {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBufferSize = size_t{1} << 20;

// "No space left on device; 12 KiB free" for what a full disk or a limit causes.
std::string describe_failure(int error_number, const std::string& folder) {
  std::string text = errno_text(error_number);
  if (error_number == ENOSPC || error_number == EDQUOT || error_number == EFBIG) {
    std::error_code ignored;
    const fs::space_info space = fs::space(folder, ignored);
    if (!ignored) text += str_cat("; ", format_bytes(space.available), " free in ", folder);
    text += error_number == EFBIG ? "; raise the file-size limit (ulimit -f)"
                                  : "; free some space or choose another folder";
  }
  return text;
}

// Opens a new file with a random name; the mode follows the umask.
int create_temporary(const fs::path& target, std::string& temp_path) {
  std::random_device random;
  for (int attempt = 0; attempt < 100; ++attempt) {
    char suffix[16];
    std::snprintf(suffix, sizeof(suffix), "%08x", static_cast<unsigned>(random()));
    // 200: names are at most 255 bytes on common file systems.
    const std::string name = target.filename().string().substr(0, 200);
    temp_path = (target.parent_path() / str_cat(".", name, ".", suffix, ".tmp")).string();
    const int fd = ::open(temp_path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0 || errno != EEXIST) return fd;
  }
  errno = EEXIST;
  return -1;
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
  require(!path.empty(), ErrorCode::kInvalidArgument, "cannot write a file without a name");
  std::error_code error;
  fs::path target = path;
  if (fs::is_symlink(target, error)) target = fs::weakly_canonical(target, error);
  const fs::file_status status = fs::status(target, error);
  require(status.type() != fs::file_type::directory, ErrorCode::kInvalidArgument, path,
          ": is a folder, expected the name of a file to write");
  require(!fs::exists(status) || fs::is_regular_file(status), ErrorCode::kInvalidArgument, path,
          ": exists and is not a regular file");
  if (target.parent_path().empty()) target = fs::path(".") / target;
  target_ = target.string();
  folder_ = target.parent_path().string();
  require(fs::is_directory(folder_, error), ErrorCode::kNotFound, path, ": the folder ", folder_,
          " does not exist; make it first");
  fd_ = create_temporary(target, temp_path_);
  if (fd_ < 0) {
    const int error_number = errno;
    temp_path_.clear();
    fail("cannot create a file in its folder", error_number);
  }
  buffer_.reserve(kBufferSize);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temp_path_.empty()) ::unlink(temp_path_.c_str());
}

void AtomicFile::fail(std::string_view what, int error_number) const {
  throw_error(ErrorCode::kUnavailable, path_, ": ", what, ": ",
              describe_failure(error_number, folder_));
}

void AtomicFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count =
        ::pwrite(fd_, bytes.data(), std::min(bytes.size(), size_t{1} << 30), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail("cannot write", count < 0 ? errno : ENOSPC);
    offset += static_cast<uint64_t>(count);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

void AtomicFile::flush() {
  write_at(size_ - buffer_.size(), buffer_);
  buffer_.clear();
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (buffer_.size() + bytes.size() > kBufferSize) flush();
  if (bytes.size() > kBufferSize) {
    write_at(size_, bytes);
  } else {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  }
  size_ += bytes.size();
}

void AtomicFile::write_zeros(uint64_t count) {
  static constexpr std::array<std::byte, 4096> kZeros{};
  while (count > 0) {
    const auto part = static_cast<size_t>(std::min<uint64_t>(count, kZeros.size()));
    write(std::span(kZeros).first(part));
    count -= part;
  }
}

void AtomicFile::patch(uint64_t offset, std::span<const std::byte> bytes) {
  require(offset <= size_ && bytes.size() <= size_ - offset, ErrorCode::kInternal, path_,
          ": patch beyond the end");
  flush();
  write_at(offset, bytes);
}

void AtomicFile::commit() {
  require(fd_ >= 0, ErrorCode::kInternal, path_, ": commit was called twice");
  flush();
  if (::fsync(fd_) != 0) fail("cannot flush to disk", errno);
  const int closed = ::close(fd_);
  fd_ = -1;
  if (closed != 0) fail("cannot close", errno);
  if (::rename(temp_path_.c_str(), target_.c_str()) != 0) fail("cannot replace it", errno);
  temp_path_.clear();
  // The rename is durable once the folder is. The data is safe either way, so a file system that
  // cannot fsync folders (EINVAL) is no error.
  const int folder = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
  const int synced = ::fsync(folder);
  const int error_number = errno;
  ::close(folder);
  if (synced != 0 && error_number != EINVAL) fail("cannot flush its folder", error_number);
}

void write_file_atomically(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace vgen::io
