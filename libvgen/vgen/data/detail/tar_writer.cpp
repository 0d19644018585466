#include "vgen/data/detail/tar_writer.h"

#include <archive.h>
#include <archive_entry.h>

#include <optional>

#include "vgen/core/error.h"
#include "vgen/io/atomic_file.h"

namespace vgen::data::detail {

struct TarWriter::Impl {
  explicit Impl(const std::string& path) : file(path), writer(archive_write_new()) {
    archive_write_set_format_pax_restricted(writer.get());
    archive_write_set_bytes_in_last_block(writer.get(), 1);  // no padding to 10 KiB
    check(archive_write_open(writer.get(), this, nullptr, on_write, nullptr));
  }
  // Frees the writer, which may flush, while the file is still there.
  ~Impl() { writer.reset(); }

  /// libarchive is C: an exception must not cross it.
  static la_ssize_t on_write(archive*, void* self, const void* bytes, size_t size) {
    Impl& impl = *static_cast<Impl*>(self);
    if (impl.failure) return -1;
    try {
      impl.file.write(std::span(static_cast<const std::byte*>(bytes), size));
      return static_cast<la_ssize_t>(size);
    } catch (const Error& error) {
      impl.failure = error;
      return -1;
    }
  }

  void check(la_ssize_t result) {
    if (failure) throw *failure;
    if (result >= ARCHIVE_OK) return;
    const char* text = archive_error_string(writer.get());
    throw_error(ErrorCode::kInternal, file.path(), ": ", printable(text ? text : "tar writer"));
  }

  struct Free {
    void operator()(archive* a) const { archive_write_free(a); }
    void operator()(archive_entry* e) const { archive_entry_free(e); }
  };
  io::AtomicFile file;
  std::optional<Error> failure;
  std::unique_ptr<archive, Free> writer;
};

TarWriter::TarWriter(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}
TarWriter::~TarWriter() = default;

void TarWriter::add(const std::string& name, std::span<const std::byte> bytes) {
  const std::unique_ptr<archive_entry, Impl::Free> entry(archive_entry_new());
  archive_entry_set_pathname(entry.get(), name.c_str());
  archive_entry_set_filetype(entry.get(), AE_IFREG);
  archive_entry_set_perm(entry.get(), 0644);
  archive_entry_set_size(entry.get(), static_cast<la_int64_t>(bytes.size()));
  impl_->check(archive_write_header(impl_->writer.get(), entry.get()));
  impl_->check(archive_write_data(impl_->writer.get(), bytes.data(), bytes.size()));
}

uint64_t TarWriter::commit() {
  impl_->check(archive_write_close(impl_->writer.get()));
  const uint64_t size = impl_->file.size();
  impl_->file.commit();
  return size;
}

}  // namespace vgen::data::detail
