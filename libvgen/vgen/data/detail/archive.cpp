#include "vgen/data/detail/archive.h"

#include <archive.h>
#include <archive_entry.h>

#include <filesystem>
#include <memory>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/io/atomic_file.h"

namespace vgen::data::detail {
namespace {

/// The decompressed bytes of a file, through libarchive's filters.
class Decompressor {
 public:
  explicit Decompressor(const std::string& path) : path_(path), reader_(archive_read_new()) {
    archive_read_support_filter_all(reader_.get());
    archive_read_support_format_raw(reader_.get());
    archive_entry* entry = nullptr;
    if (archive_read_open_filename(reader_.get(), path.c_str(), 1 << 18) != ARCHIVE_OK ||
        archive_read_next_header(reader_.get(), &entry) != ARCHIVE_OK) {
      fail();
    }
  }

  /// Fills up to out.size() bytes; 0 at the end.
  size_t read(std::span<std::byte> out) {
    const la_ssize_t count = archive_read_data(reader_.get(), out.data(), out.size());
    if (count < 0) fail();
    return static_cast<size_t>(count);
  }

 private:
  struct Free {
    void operator()(archive* reader) const { archive_read_free(reader); }
  };

  [[noreturn]] void fail() const {
    const char* text = archive_error_string(reader_.get());
    throw_error(ErrorCode::kDataCorrupt, path_,
                ": cannot be decompressed: ", printable(text ? text : "unknown reason"),
                "; get it again");
  }

  std::string path_;
  std::unique_ptr<archive, Free> reader_;
};

}  // namespace

bool is_compressed_tar(std::string_view path) {
  const std::string name = to_lower(path);
  for (const char* end :
       {".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2"}) {
    if (name.ends_with(end)) return true;
  }
  return false;
}

std::unique_ptr<ByteSource> open_compressed(const std::string& path, const std::string& unpacked,
                                            uint64_t max_in_memory) {
  if (std::filesystem::exists(unpacked)) return open_file_source(unpacked);
  Decompressor decompressor(path);
  std::vector<std::byte> bytes;
  std::vector<std::byte> chunk(1 << 20);
  while (const size_t count = decompressor.read(chunk)) {
    bytes.insert(bytes.end(), chunk.begin(), chunk.begin() + static_cast<ptrdiff_t>(count));
    if (bytes.size() > max_in_memory) break;
  }
  if (bytes.size() <= max_in_memory) return make_memory_source(std::move(bytes));

  const auto unpack_into = [&](auto& file, const std::string& place) {
    log_info(path, ": more than ", format_bytes(max_in_memory),
             " when decompressed; unpacking the tar ", place);
    file.write(bytes);
    bytes = {};
    while (const size_t count = decompressor.read(chunk)) {
      file.write(std::span<const std::byte>(chunk).first(count));
    }
  };
  if (unpacked.empty()) {
    UnnamedFile file;
    unpack_into(file, str_cat("for this time, to a temporary file in ", file.folder()));
    return file.take();
  }
  io::AtomicFile file(unpacked);
  unpack_into(file, str_cat("once to ", unpacked));
  file.commit();
  return open_file_source(unpacked);
}

}  // namespace vgen::data::detail
