#include "vgen/io/npy.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>

#include "vgen/core/log.h"
#include "vgen/io/atomic_file.h"
#include "vgen/io/detail/bytes.h"
#include "vgen/io/detail/npy_header.h"
#include "vgen/io/detail/zip_reader.h"
#include "vgen/io/detail/zip_writer.h"

namespace vgen::io {
namespace {

constexpr size_t kNpzAlignment = 64;
constexpr size_t kMaxHeaderRead = 64 << 10;  // real headers have 128 bytes

// Column-major source, row-major result: the last index varies fastest in the result.
void reorder_columns(std::span<const std::byte> in, const std::vector<int64_t>& shape, size_t item,
                     std::span<std::byte> out) {
  const size_t rank = shape.size();
  std::vector<size_t> stride(rank), index(rank, 0);
  size_t step = item;
  for (size_t i = 0; i < rank; ++i) {
    stride[i] = step;
    step *= static_cast<size_t>(shape[i]);
  }
  size_t source = 0;
  for (size_t target = 0; target < out.size(); target += item) {
    std::memcpy(out.data() + target, in.data() + source, item);
    for (size_t i = rank; i-- > 0;) {
      source += stride[i];
      if (++index[i] < static_cast<size_t>(shape[i])) break;
      source -= stride[i] * index[i];
      index[i] = 0;
    }
  }
}

void swap_bytes(std::span<std::byte> bytes, size_t scalar) {
  for (size_t at = 0; at < bytes.size(); at += scalar) {
    std::reverse(bytes.data() + at, bytes.data() + at + scalar);
  }
}

Array parse(const FileBytes& file) {
  const detail::NpyHeader header = detail::parse_npy_header(file.bytes);
  const uint64_t size = count_bytes(header.dtype, header.shape);
  auto rest = file.bytes.subspan(header.data_offset);
  require(rest.size() >= size, ErrorCode::kDataCorrupt, "npy: ", dtype_name(header.dtype), " ",
          format_shape(header.shape), " needs ", size, " bytes, the file has ", rest.size(),
          ": it is cut off");
  if (rest.size() > size) {
    log_warning(file.name, ": the ", rest.size() - size, " bytes after the array are ignored");
  }
  rest = rest.first(size);
  const bool must_reorder = header.is_fortran_order && header.shape.size() > 1;
  if (!must_reorder && !header.is_big_endian) {
    return normalised({ArrayView{header.dtype, header.shape, rest}, file.owner});
  }
  return normalised(make_array(header.dtype, header.shape, [&](std::span<std::byte> out) {
    if (must_reorder) {
      reorder_columns(rest, header.shape, item_size(header.dtype), out);
    } else {
      std::ranges::copy(rest, out.begin());
    }
    if (header.is_big_endian) swap_bytes(out, scalar_size(header.dtype));
  }));
}

}  // namespace

Array parse_npy(const FileBytes& file) {
  try {
    return parse(file);
  } catch (Error& error) {
    error.add_context(file.name);
    throw;
  }
}

Array read_npy(const std::string& path) { return parse_npy(map_file(path)); }

void write_npy(const std::string& path, const ArrayView& array) {
  std::string header;
  try {
    header = detail::make_npy_header(array.dtype, array.shape);
  } catch (Error& error) {
    error.add_context(path);
    throw;
  }
  AtomicFile file(path);
  file.write(header);
  file.write(array.data);
  file.commit();
}

struct NpzFile::Impl {
  explicit Impl(const FileBytes& bytes) : file(bytes), zip(bytes.bytes) {}

  const detail::ZipEntry& entry(const std::string& name) const;

  FileBytes file;
  detail::ZipReader zip;
  std::vector<std::string> names;
};

NpzFile::NpzFile(const std::string& path) : NpzFile(map_file(path)) {}

NpzFile::NpzFile(const FileBytes& file) {
  try {
    impl_ = std::make_unique<Impl>(file);
    for (const detail::ZipEntry& entry : impl_->zip.entries()) {
      require(entry.name.size() > 4 && entry.name.ends_with(".npy"), ErrorCode::kDataCorrupt,
              "not a .npz: it holds '", printable(entry.name), "', expected .npy members only");
      impl_->names.push_back(entry.name.substr(0, entry.name.size() - 4));
    }
  } catch (Error& error) {
    error.add_context(file.name);
    throw;
  }
}

NpzFile::~NpzFile() = default;
NpzFile::NpzFile(NpzFile&&) noexcept = default;
NpzFile& NpzFile::operator=(NpzFile&&) noexcept = default;

const std::vector<std::string>& NpzFile::names() const { return impl_->names; }

const detail::ZipEntry& NpzFile::Impl::entry(const std::string& name) const {
  const detail::ZipEntry* entry = zip.find(name + ".npy");
  require(entry != nullptr, ErrorCode::kNotFound, file.name, ": no array '", printable(name),
          "'; it has ", join(names, ", "));
  return *entry;
}

Array NpzFile::read(const std::string& name) const {
  const std::string label = str_cat(impl_->file.name, ": ", printable(name), ".npy");
  const detail::ZipEntry& entry = impl_->entry(name);
  try {
    if (entry.method == 0) {
      return parse({label, impl_->zip.read_stored(entry), impl_->file.owner});
    }
    // Deflate shrinks by 1032 at most: a larger claim would only make us allocate for nothing.
    require(entry.size / 1040 <= entry.data.size(), ErrorCode::kDataCorrupt, "claims ", entry.size,
            " bytes, more than its ", entry.data.size(), " deflated can hold");
    std::shared_ptr<std::byte[]> bytes(new std::byte[entry.size]);
    const std::span<std::byte> out(bytes.get(), entry.size);
    impl_->zip.read_into(entry, out);
    return parse({label, out, bytes});
  } catch (Error& error) {
    error.add_context(label);
    throw;
  }
}

ArrayView NpzFile::describe(const std::string& name) const {
  const detail::ZipEntry& entry = impl_->entry(name);
  try {
    const auto prefix = impl_->zip.read_prefix(entry, kMaxHeaderRead);
    const detail::NpyHeader header = detail::parse_npy_header(prefix);
    count_bytes(header.dtype, header.shape);
    return {header.dtype, header.shape, {}};
  } catch (Error& error) {
    error.add_context(str_cat(impl_->file.name, ": ", printable(name), ".npy"));
    throw;
  }
}

struct NpzWriter::Impl {
  explicit Impl(const std::string& path) : zip(path, kNpzAlignment) {}

  detail::ZipWriter zip;
  std::set<std::string> names;
};

NpzWriter::NpzWriter(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}
NpzWriter::~NpzWriter() = default;

void NpzWriter::add(const std::string& name, const ArrayView& array) {
  begin(name, array.dtype, array.shape);
  write(array.data);
  end();
}

void NpzWriter::begin(const std::string& name, Dtype dtype, const std::vector<int64_t>& shape) {
  require(impl_->names.insert(name).second, ErrorCode::kInvalidArgument,
          "npz: two arrays are named '", printable(name), "'");
  const std::string header = detail::make_npy_header(dtype, shape);
  impl_->zip.begin(name + ".npy", header.size() + count_bytes(dtype, shape));
  impl_->zip.write(detail::as_bytes(header));
}

void NpzWriter::write(std::span<const std::byte> bytes) { impl_->zip.write(bytes); }
void NpzWriter::end() { impl_->zip.end(); }
void NpzWriter::finish() { impl_->zip.finish(); }

}  // namespace vgen::io
