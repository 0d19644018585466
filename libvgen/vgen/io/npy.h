#pragma once
// NumPy's .npy and .npz. https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "vgen/io/array.h"
#include "vgen/io/mapped_file.h"

namespace vgen::io {

/// Reads a .npy file: format 1.0 to 3.0, bool, integers, floats, complex, both byte orders, C and
/// Fortran order. The result is C-ordered; a little-endian C-ordered file is mapped, not copied.
/// Python objects, structured and text types are refused; bytes after the array are ignored, with
/// a warning.
/// Throws Error(kNotFound, kDataCorrupt, kUnavailable).
Array read_npy(const std::string& path);
Array parse_npy(const FileBytes& file);

/// Writes format 1.0 atomically. NumPy has no bfloat16 and float8: Error(kInvalidArgument).
void write_npy(const std::string& path, const ArrayView& array);

/// A .npz file: a zip of .npy members, stored or deflated, ZIP64 too.
class NpzFile {
 public:
  /// Maps the file and checks the zip directory. Throws like read_npy.
  explicit NpzFile(const std::string& path);
  explicit NpzFile(const FileBytes& file);
  ~NpzFile();
  NpzFile(NpzFile&&) noexcept;
  NpzFile& operator=(NpzFile&&) noexcept;

  /// Names without ".npy", in file order.
  const std::vector<std::string>& names() const;

  /// One array, its checksum verified. A stored member is mapped, a deflated one is inflated, never
  /// beyond its declared size. Throws Error(kNotFound) for an unknown name.
  Array read(const std::string& name) const;

  /// What read() would give, without its data (`data` is empty): reads only the header.
  ArrayView describe(const std::string& name) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Writes a .npz (stored, ZIP64 where needed) atomically, array by array, each in one piece or
/// streamed: memory stays constant for arrays of any size.
class NpzWriter {
 public:
  explicit NpzWriter(const std::string& path);
  ~NpzWriter();  ///< without finish() nothing is left behind
  NpzWriter(const NpzWriter&) = delete;
  NpzWriter& operator=(const NpzWriter&) = delete;

  void add(const std::string& name, const ArrayView& array);

  /// Streaming: begin(), write() until exactly all bytes of the shape are there, end().
  void begin(const std::string& name, Dtype dtype, const std::vector<int64_t>& shape);
  void write(std::span<const std::byte> bytes);
  void end();

  /// Directory, fsync, rename. Call once, last.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace vgen::io
