#include "data/data_support.h"

#include <archive.h>
#include <archive_entry.h>

#include <catch2/catch.hpp>
#include <cstdio>
#include <filesystem>

#include "support/support.h"
#include "vgen/core/strings.h"
#include "vgen/data/detail/byte_source.h"

namespace vgen::test {
namespace {

std::string to_text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

data::Image make_picture(int64_t width, int64_t height, int seed) {
  data::Image image{.width = width, .height = height, .rgb = {}};
  for (int64_t i = 0; i < width * height * 3; ++i) {
    image.rgb.push_back(static_cast<uint8_t>(seed * 37 + i * 5 + i / 7));
  }
  return image;
}

std::string png_bytes(const data::Image& image) { return to_text(data::encode_png(image)); }
std::string jpeg_bytes(const data::Image& image) { return to_text(data::encode_jpeg(image, 90)); }

std::string hash_of(const data::Image& image) {
  char text[17];
  const std::string_view bytes(reinterpret_cast<const char*>(image.rgb.data()), image.rgb.size());
  std::snprintf(text, sizeof(text), "%016llx",
                static_cast<unsigned long long>(data::detail::hash_bytes(bytes)));
  return text;
}

Files class_folders(int classes, int per_class, int64_t side) {
  Files files;
  for (int c = 0; c < classes; ++c) {
    for (int i = 0; i < per_class; ++i) {
      files.emplace_back(str_cat("c", c, "/", i, ".png"),
                         png_bytes(make_picture(side, side, c * per_class + i)));
    }
  }
  return files;
}

void write_files(const std::string& root, const Files& files) {
  for (const auto& [name, bytes] : files) {
    const std::filesystem::path path = std::filesystem::path(root) / name;
    std::filesystem::create_directories(name.ends_with('/') ? path : path.parent_path());
    if (!name.ends_with('/')) write_file(path.string(), bytes);
  }
}

std::string tar_bytes(const Files& files, const std::string& filter) {
  size_t room = 1 << 20;
  for (const auto& [name, bytes] : files) room += bytes.size() + 4096;
  std::string out(room, '\0');
  size_t used = 0;
  archive* writer = archive_write_new();
  archive_write_set_format_pax_restricted(writer);
  if (filter == "gzip") archive_write_add_filter_gzip(writer);
  REQUIRE(archive_write_open_memory(writer, out.data(), out.size(), &used) == ARCHIVE_OK);
  for (const auto& [name, bytes] : files) {
    archive_entry* entry = archive_entry_new();
    archive_entry_set_pathname(entry, name.c_str());
    archive_entry_set_filetype(entry, name.ends_with('/') ? AE_IFDIR : AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_entry_set_size(entry, static_cast<la_int64_t>(bytes.size()));
    REQUIRE(archive_write_header(writer, entry) == ARCHIVE_OK);
    archive_write_data(writer, bytes.data(), bytes.size());
    archive_entry_free(entry);
  }
  REQUIRE(archive_write_close(writer) == ARCHIVE_OK);
  archive_write_free(writer);
  out.resize(used);
  return out;
}

}  // namespace vgen::test
