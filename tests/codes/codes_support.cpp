#include "codes/codes_support.h"

#include <filesystem>

#include "support/support.h"
#include "vgen/core/strings.h"

namespace vgen::test {

codes::CodeInfo tiny_info() {
  return {.tokenizer = "vqgan-0123456789abcdef",
          .codebook_size = 50000,
          .image_size = 32,
          .grid = {2, 3},
          .patch_nums = {},
          .crop_sets = {codes::parse_crop_set("center_flip"), codes::parse_crop_set("ten_crop")},
          .precision = "fp32",
          .classes = {"c0", "c1", "c2"}};
}

codes::CodeInfo square_info(int64_t codebook_size) {
  return {.tokenizer = "",
          .codebook_size = codebook_size,
          .image_size = 64,
          .grid = {4, 4},
          .patch_nums = {},
          .crop_sets = {codes::parse_crop_set("center_flip")},
          .precision = "fp32",
          .classes = {"c0", "c1", "c2"}};
}

std::vector<int64_t> tiny_codes(const codes::CodeInfo& info, int64_t image) {
  std::vector<int64_t> codes;
  for (int64_t i = 0; i < info.num_crops() * info.num_tokens(); ++i) {
    codes.push_back((image * 100 + i) % info.codebook_size);
  }
  return codes;
}

void write_codes(const std::string& folder, const codes::CodeInfo& info, int64_t images,
                 int64_t shard_size) {
  std::filesystem::create_directories(folder);
  codes::CodeIndex index{.info = info, .settings = codes::info_to_json(info)};
  for (int64_t begin = 0; begin < images; begin += shard_size) {
    codes::ShardBuilder shard(info);
    for (int64_t image = begin; image < std::min(images, begin + shard_size); ++image) {
      shard.add(image, image % 3, str_cat("c", image % 3, "/", image, ".png"),
                tiny_codes(info, image));
    }
    const int64_t number = begin / shard_size;
    shard.write(folder, number, index.settings);
    index.shards.push_back(
        codes::check_shard(str_cat(folder, "/", codes::shard_name(number)), info, index.settings));
  }
  index.num_images = images;
  codes::write_index(folder, index);
}

void flip_byte(const std::string& path, int64_t offset) {
  std::string bytes = read_file(path);
  bytes.at(static_cast<size_t>(offset)) ^= 1;
  write_file(path, bytes);
}

}  // namespace vgen::test
