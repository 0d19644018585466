#include "vgen/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "vgen/core/error.h"

namespace vgen::io {
namespace {

// Closes a descriptor at the end of a scope.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a named pipe must not hang; it means nothing for regular files.
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) {
    require(errno != ENOENT && errno != ENOTDIR, ErrorCode::kNotFound, path, ": no such file");
    throw_error(ErrorCode::kUnavailable, path, ": cannot open: ", errno_text(errno));
  }
  struct stat info {};
  require(::fstat(file.get(), &info) == 0, ErrorCode::kUnavailable, path,
          ": cannot read its size: ", errno_text(errno));
  require(!S_ISDIR(info.st_mode), ErrorCode::kInvalidArgument, path, ": is a folder, not a file");
  require(S_ISREG(info.st_mode), ErrorCode::kInvalidArgument, path, ": is not a regular file");
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) return;  // an empty range cannot be mapped
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  require(address != MAP_FAILED, ErrorCode::kUnavailable, path, ": cannot map ", format_bytes(size),
          " into memory: ", errno_text(errno));
  bytes_ = {static_cast<const std::byte*>(address), size};
}

MappedFile::~MappedFile() {
  if (bytes_.empty()) return;
  ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

FileBytes map_file(const std::string& path) {
  auto file = std::make_shared<const MappedFile>(path);
  const auto bytes = file->bytes();
  return {path, bytes, std::move(file)};
}

void forget_pages(std::span<const std::byte> bytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(bytes.data());
  const uintptr_t first = (begin + page - 1) / page * page,
                  last = (begin + bytes.size()) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

std::string read_text_file(const std::string& path, size_t max_size) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  require(bytes.size() <= max_size, ErrorCode::kDataCorrupt, path, ": ", format_bytes(bytes.size()),
          " where at most ", format_bytes(max_size), " are expected");
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace vgen::io
