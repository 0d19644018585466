#include "vgen/data/detail/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "vgen/core/error.h"

namespace vgen::data::detail {
namespace {

/// Owns a file descriptor that is open for reading.
class ReadFile {
 public:
  explicit ReadFile(const std::string& path) : path_(path) {
    // O_NONBLOCK: a pipe that is named like an image must not stop the reader.
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd_ < 0) fail();
    struct stat status {};
    if (::fstat(fd_, &status) != 0) {
      const int error = errno;
      ::close(fd_);
      errno = error;
      fail();
    }
    if (!S_ISREG(status.st_mode)) {
      ::close(fd_);
      throw_error(ErrorCode::kInvalidArgument, path, ": is not a regular file");
    }
    size_ = static_cast<uint64_t>(status.st_size);
  }
  /// Takes over a descriptor of `size` bytes; `path` is what errors call it.
  ReadFile(std::string path, int fd, uint64_t size)
      : path_(std::move(path)), fd_(fd), size_(size) {}
  ~ReadFile() { ::close(fd_); }
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;

  uint64_t size() const { return size_; }

  void read(uint64_t offset, std::span<std::byte> out) const {
    while (!out.empty()) {
      const ssize_t count = ::pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail();
      require(count > 0, ErrorCode::kDataCorrupt, path_, ": ends at byte ", offset, ", ",
              out.size(), " bytes too early; was it changed while open?");
      offset += static_cast<uint64_t>(count);
      out = out.subspan(static_cast<size_t>(count));
    }
  }

 private:
  [[noreturn]] void fail() const {
    const auto code =
        errno == ENOENT || errno == ENOTDIR ? ErrorCode::kNotFound : ErrorCode::kUnavailable;
    throw_error(code, path_, ": cannot be read: ", errno_text(errno));
  }

  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

class FileSource : public ByteSource {
 public:
  explicit FileSource(const std::string& path) : file_(path) {}
  FileSource(std::string path, int fd, uint64_t size) : file_(std::move(path), fd, size) {}
  uint64_t size() const override { return file_.size(); }
  void read(uint64_t offset, std::span<std::byte> out) const override { file_.read(offset, out); }

 private:
  ReadFile file_;
};

class MemorySource : public ByteSource {
 public:
  explicit MemorySource(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {}
  uint64_t size() const override { return bytes_.size(); }
  void read(uint64_t offset, std::span<std::byte> out) const override {
    require(offset <= bytes_.size() && out.size() <= bytes_.size() - offset,
            ErrorCode::kDataCorrupt, "ends at byte ", bytes_.size(), ", ", out.size(),
            " bytes were expected at ", offset);
    if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
  }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

FileStamp stamp_of(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    const auto code =
        errno == ENOENT || errno == ENOTDIR ? ErrorCode::kNotFound : ErrorCode::kUnavailable;
    throw_error(code, path, ": ", errno_text(errno));
  }
  return {.size = static_cast<uint64_t>(status.st_size),
          .mtime_ns = int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec};
}

uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

std::unique_ptr<ByteSource> open_file_source(const std::string& path) {
  return std::make_unique<FileSource>(path);
}

std::unique_ptr<ByteSource> make_memory_source(std::vector<std::byte> bytes) {
  return std::make_unique<MemorySource>(std::move(bytes));
}

UnnamedFile::UnnamedFile() {
  std::error_code error;
  folder_ = std::filesystem::temp_directory_path(error).string();
  require(!error, ErrorCode::kUnavailable, "no folder for temporary files: ", error.message(),
          "; set TMPDIR to one that is there");
  std::string name = str_cat(folder_, "/vgen-XXXXXX");
  fd_ = ::mkostemp(name.data(), O_CLOEXEC);
  require(fd_ >= 0, ErrorCode::kUnavailable, folder_,
          ": a temporary file cannot be made: ", errno_text(errno),
          "; set TMPDIR to a folder that can be written to");
  ::unlink(name.c_str());
}

UnnamedFile::~UnnamedFile() {
  if (fd_ >= 0) ::close(fd_);
}

void UnnamedFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    require(count >= 0, ErrorCode::kUnavailable, folder_, ": a temporary file of ",
            format_bytes(size_), " cannot grow: ", errno_text(errno),
            "; set TMPDIR to a folder with more room");
    size_ += static_cast<uint64_t>(count);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

std::unique_ptr<ByteSource> UnnamedFile::take() {
  return std::make_unique<FileSource>(str_cat("temporary file in ", folder_),
                                      std::exchange(fd_, -1), size_);
}

std::vector<std::byte> read_whole_file(const std::string& path, uint64_t max_size) {
  const ReadFile file(path);
  require(file.size() <= max_size, ErrorCode::kDataCorrupt, path, ": holds ",
          format_bytes(file.size()), ", at most ", format_bytes(max_size), " were expected");
  std::vector<std::byte> bytes(file.size());
  file.read(0, bytes);
  return bytes;
}

}  // namespace vgen::data::detail
