#pragma once
// Small code datasets, made by a formula.

#include <cstdint>
#include <string>
#include <vector>

#include "vgen/codes/code_shard.h"

namespace vgen::test {

/// Grid 2 x 3, 50 codes, center_flip and ten_crop:1.1, three classes.
codes::CodeInfo tiny_info();

/// Grid 4 x 4 of 64 x 64 pixels, center_flip, three classes; no tokenizer is named.
codes::CodeInfo square_info(int64_t codebook_size);

/// Codes of all crops of an image, A x T: all different for different (image, crop, token).
std::vector<int64_t> tiny_codes(const codes::CodeInfo& info, int64_t image);

/// Labels are image % 3, names "c<label>/<image>.png". `shard_size` images per shard.
void write_codes(const std::string& folder, const codes::CodeInfo& info, int64_t images,
                 int64_t shard_size);

/// Changes one byte of a file.
void flip_byte(const std::string& path, int64_t offset);

}  // namespace vgen::test
