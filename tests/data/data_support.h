#pragma once
// What the data tests share: small pictures, folders and tars of them.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "vgen/data/image.h"

namespace vgen::test {

/// A picture whose pixels depend on `seed`.
data::Image make_picture(int64_t width, int64_t height, int seed);

std::string png_bytes(const data::Image& image);
std::string jpeg_bytes(const data::Image& image);

/// FNV-1a 64 in hexadecimal, as scripts/make_pil_golden.py writes it.
std::string hash_of(const data::Image& image);

using Files = std::vector<std::pair<std::string, std::string>>;  ///< (path, bytes)

/// `classes` folders c0, c1, ... with `per_class` PNGs of side x side each.
Files class_folders(int classes, int per_class, int64_t side = 8);

void write_files(const std::string& root, const Files& files);

/// A tar in memory. filter: "" or "gzip". A name that ends with '/' is a folder.
std::string tar_bytes(const Files& files, const std::string& filter = "");

}  // namespace vgen::test
