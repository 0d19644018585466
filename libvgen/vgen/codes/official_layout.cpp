#include "vgen/codes/official_layout.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/io/npy.h"

namespace vgen::codes {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kCodes = "_codes";
constexpr std::string_view kLabels = "_labels";

/// "a/b/" is "a/b".
std::string without_slash(const std::string& path) {
  const std::string normal = fs::path(path).lexically_normal().string();
  return normal.size() > 1 && normal.ends_with('/') ? normal.substr(0, normal.size() - 1) : normal;
}

/// The `<name>_codes` folder that a path means.
std::string codes_folder(const std::string& path) {
  const std::string root = without_slash(path);
  if (root.ends_with(kCodes)) return root;
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(root)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_directory() && name.ends_with(kCodes)) found.push_back(name);
  }
  std::ranges::sort(found);
  require(!found.empty(), ErrorCode::kNotFound, path,
          ": holds no codes; expected index.json of `vgen extract`, or a folder such as "
          "imagenet256_codes");
  require(found.size() == 1, ErrorCode::kInvalidArgument, path, ": holds several sets of codes, ",
          join(found, ", "), "; give the path of one of them");
  return str_cat(root, "/", found[0]);
}

std::string labels_folder(const std::string& codes) {
  return str_cat(codes.substr(0, codes.size() - kCodes.size()), kLabels);
}

/// The numbers k of all <k>.npy, ascending.
std::vector<int64_t> list_images(const std::string& folder) {
  constexpr std::string_view kSuffix = ".npy";
  std::vector<int64_t> images;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    int64_t number = 0;
    if (name.ends_with(kSuffix) &&
        parse_int(std::string_view(name).substr(0, name.size() - kSuffix.size()), number) &&
        number >= 0) {
      images.push_back(number);
    }
  }
  std::ranges::sort(images);
  return images;
}

/// (1, A, T), (A, T) or, of one crop, (1, T).
struct Codes {
  io::Array array;
  int64_t crops = 0;
  int64_t tokens = 0;
};

Codes read_codes(const std::string& path) {
  Codes codes{.array = io::read_npy(path)};
  const auto& shape = codes.array.shape;
  require(codes.array.dtype == io::Dtype::kInt64 && shape.size() >= 2 && shape.size() <= 3 &&
              (shape.size() == 2 || shape[0] == 1) && shape.back() >= 1 &&
              shape[shape.size() - 2] >= 1,
          ErrorCode::kDataCorrupt, path, ": holds ", io::dtype_name(codes.array.dtype), " ",
          format_shape(shape), ", expected int64 [1, crops, tokens]");
  codes.crops = shape[shape.size() - 2];
  codes.tokens = shape.back();
  return codes;
}

/// "imagenet256" has 256; 0 without a number.
int64_t image_size_of(const std::string& codes_folder) {
  std::string name = fs::path(codes_folder).filename().string();
  name.resize(name.size() - kCodes.size());
  const size_t digits = name.find_last_not_of("0123456789") + 1;
  int64_t size = 0;
  if (digits < name.size() && parse_int(std::string_view(name).substr(digits), size) &&
      size <= 65536) {
    return size;
  }
  return 0;
}

/// How many crops tell how they were made.
CropSet crop_set_of(int64_t crops, double range, const std::string& path) {
  switch (crops) {
    case 1:
      return {.kind = CropSet::Kind::kCenter};
    case 2:
      return {.kind = CropSet::Kind::kCenterFlip};
    case 5:
      return {.kind = CropSet::Kind::kFiveCrop, .range = range};
    case 10:
      return {.kind = CropSet::Kind::kTenCrop, .range = range};
    default:
      throw_error(ErrorCode::kInvalidArgument, path, ": has ", crops,
                  " crops of an image, expected 1, 2, 5 or 10");
  }
}

class OfficialSource : public CodeDataset::Source {
 public:
  OfficialSource(const std::string& path, const OpenOptions& options) {
    folders_.push_back(codes_folder(path));
    labels_ = labels_folder(folders_[0]);
    require(fs::is_directory(folders_[0]), ErrorCode::kNotFound, folders_[0], ": no such folder");
    require(fs::is_directory(labels_), ErrorCode::kNotFound, labels_,
            ": no such folder; the labels are expected there");
    images_ = list_images(folders_[0]);
    require(!images_.empty(), ErrorCode::kInvalidArgument, folders_[0],
            ": holds no files such as 0.npy: there are no codes");
    if (options.second_set == "auto") find_second();
    describe();
    log_warning(folders_[0], ": ", format_count(images_.size()),
                " images in the official layout, which does not tell their tokenizer: make sure "
                "that it is the right one");
  }

  const CodeInfo& info() const override { return info_; }
  int64_t size() const override { return static_cast<int64_t>(images_.size()); }

  void read(int64_t index, size_t crop_set, int64_t crop,
            std::span<int64_t> code_T) const override {
    const std::string path = file(folders_[crop_set], index);
    const Codes codes = read_codes(path);
    require(codes.crops == info_.crop_sets[crop_set].count() && codes.tokens == info_.num_tokens(),
            ErrorCode::kDataCorrupt, path, ": holds ", codes.crops, " crops of ", codes.tokens,
            " codes, expected ", info_.crop_sets[crop_set].count(), " of ", info_.num_tokens());
    const auto all = codes.array.as<int64_t>();
    const auto from = all.subspan(static_cast<size_t>(crop) * code_T.size(), code_T.size());
    std::ranges::copy(from, code_T.begin());
    const int64_t low = *std::ranges::min_element(from);
    require(low >= 0, ErrorCode::kDataCorrupt, path, ": holds the code ", low,
            ", expected at least 0");
  }
  int64_t label(int64_t index) const override {
    const std::string path = file(labels_, index);
    const io::Array array = io::read_npy(path);
    require(array.dtype == io::Dtype::kInt64 && array.num_elements() == 1, ErrorCode::kDataCorrupt,
            path, ": holds ", io::dtype_name(array.dtype), " ", format_shape(array.shape),
            ", expected int64 [1]");
    return array.as<int64_t>()[0];
  }
  std::string name(int64_t index) const override { return std::to_string(image_index(index)); }
  int64_t image_index(int64_t index) const override { return images_[static_cast<size_t>(index)]; }

 private:
  std::string file(const std::string& folder, int64_t index) const {
    return str_cat(folder, "/", image_index(index), ".npy");
  }

  void find_second() {
    const fs::path folder(folders_[0]);
    const std::string parent = fs::absolute(folder).lexically_normal().parent_path().string();
    if (!parent.ends_with("ten_crop")) return;
    const std::string second = str_cat(parent, "_105/", folder.filename().string());
    if (!fs::is_directory(second)) return;
    folders_.push_back(second);
    log_info(second, ": a second set of crops, taken for half of the samples");
  }

  void describe() {
    const double ranges[] = {1.1, 1.05};
    for (size_t i = 0; i < folders_.size(); ++i) {
      const std::string path = file(folders_[i], 0);
      const Codes codes = read_codes(path);
      info_.crop_sets.push_back(crop_set_of(codes.crops, ranges[i], path));
      if (i > 0) continue;
      const auto side = std::llround(std::sqrt(static_cast<double>(codes.tokens)));
      require(side * side == codes.tokens, ErrorCode::kInvalidArgument, path, ": has ",
              codes.tokens, " codes per crop, expected a square number");
      info_.grid = {side, side};
      info_.image_size = image_size_of(folders_[0]);
    }
    validate(info_);
  }

  CodeInfo info_;
  std::vector<std::string> folders_;  // of codes, one per crop set
  std::string labels_;
  std::vector<int64_t> images_;
};

}  // namespace

std::unique_ptr<CodeDataset::Source> open_official(const std::string& path,
                                                   const OpenOptions& options) {
  return std::make_unique<OfficialSource>(path, options);
}

OfficialWriter::OfficialWriter(const std::string& path, const CodeInfo& info)
    : num_tokens_(info.num_tokens()) {
  const std::string root = without_slash(path);
  require(info.crop_sets.size() == 1 || (info.crop_sets.size() == 2 && root.ends_with("ten_crop")),
          ErrorCode::kInvalidArgument, path, ": ", info.crop_sets.size(),
          " crop sets in the official layout: its reader takes at most two, and the second only "
          "beside a folder whose name ends in ten_crop");
  require(info.num_crops() == 1 || root.find("flip") != std::string::npos,
          ErrorCode::kInvalidArgument, path, ": the Python reader takes one of ", info.num_crops(),
          " crops only if its path has 'flip' in it; name the folder such as codes_flip_ten_crop");
  for (size_t i = 0; i < info.crop_sets.size(); ++i) {
    const std::string name = str_cat(root, i == 0 ? "" : "_105", "/imagenet", info.image_size);
    folders_.push_back({.codes = str_cat(name, kCodes),
                        .labels = str_cat(name, kLabels),
                        .first_crop = info.first_crop(i),
                        .num_crops = info.crop_sets[i].count()});
    for (const std::string& folder : {folders_[i].codes, folders_[i].labels}) {
      std::error_code error;
      fs::create_directories(folder, error);
      require(!error, ErrorCode::kUnavailable, folder, ": cannot be made: ", error.message());
    }
  }
}

bool OfficialWriter::has(int64_t image) const {
  return std::ranges::all_of(folders_, [&](const Folder& folder) {
    return fs::exists(str_cat(folder.codes, "/", image, ".npy")) &&
           fs::exists(str_cat(folder.labels, "/", image, ".npy"));
  });
}

void OfficialWriter::write(int64_t image, int64_t label, std::span<const int64_t> code_AT) const {
  const std::string name = str_cat("/", image, ".npy");
  for (const Folder& folder : folders_) {
    const auto codes = code_AT.subspan(static_cast<size_t>(folder.first_crop * num_tokens_),
                                       static_cast<size_t>(folder.num_crops * num_tokens_));
    io::write_npy(folder.codes + name,
                  {io::Dtype::kInt64, {1, folder.num_crops, num_tokens_}, std::as_bytes(codes)});
    io::write_npy(folder.labels + name,
                  {io::Dtype::kInt64, {1}, std::as_bytes(std::span(&label, 1))});
  }
}

}  // namespace vgen::codes
