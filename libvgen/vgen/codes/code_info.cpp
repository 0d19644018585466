#include "vgen/codes/code_info.h"

#include <limits>

#include "vgen/core/error.h"
#include "vgen/core/strings.h"

namespace vgen::codes {
namespace {

using io::Json;

constexpr int64_t kMaxTokens = int64_t{1} << 20;  // of one crop
constexpr int64_t kMaxCropSets = 64;
constexpr std::string_view kTenCrop = "ten_crop", kFiveCrop = "five_crop";

/// "KIND" or "KIND:RANGE", whose range goes to `range`.
bool parse_ranged(std::string_view name, std::string_view kind, double& range) {
  if (!name.starts_with(kind)) return false;
  const std::string_view rest = name.substr(kind.size());
  return rest.empty() || (rest.front() == ':' && parse_double(rest.substr(1), range));
}

Json numbers(const std::vector<int64_t>& values) {
  Json list = Json::array();
  for (const int64_t value : values) list.add(Json::number(value));
  return list;
}

std::vector<int64_t> read_numbers(const Json& json, std::string_view name) {
  std::vector<int64_t> values;
  for (const Json& item : json.get_array(name).items) {
    require(item.kind == Json::Kind::kInt, ErrorCode::kDataCorrupt, "'", name, "' holds ",
            io::json_kind_name(item.kind), ", expected integers");
    values.push_back(item.integer);
  }
  return values;
}

}  // namespace

int64_t CropSet::count() const {
  switch (kind) {
    case Kind::kCenter:
      return 1;
    case Kind::kCenterFlip:
      return 2;
    case Kind::kTenCrop:
      return 10;
    case Kind::kFiveCrop:
      return 5;
  }
  return 0;
}

int64_t CropSet::middle() const {
  return kind == Kind::kTenCrop || kind == Kind::kFiveCrop ? 4 : 0;
}

std::string CropSet::name() const {
  switch (kind) {
    case Kind::kCenter:
      return "center";
    case Kind::kCenterFlip:
      return "center_flip";
    case Kind::kTenCrop:
      return str_cat(kTenCrop, ":", format_double(range));
    case Kind::kFiveCrop:
      return str_cat(kFiveCrop, ":", format_double(range));
  }
  return "";
}

CropSet parse_crop_set(std::string_view name) {
  if (name == "center") return {.kind = CropSet::Kind::kCenter};
  if (name == "center_flip") return {.kind = CropSet::Kind::kCenterFlip};
  double range = 1.1;
  const bool is_ten_crop = parse_ranged(name, kTenCrop, range);
  require(is_ten_crop || parse_ranged(name, kFiveCrop, range), ErrorCode::kInvalidArgument,
          "crops '", printable(name),
          "': expected center, center_flip, ten_crop:RANGE or five_crop:RANGE");
  require(range >= 1 && range <= 4, ErrorCode::kInvalidArgument, "crops '", printable(name),
          "': the range must be in [1, 4]");
  return {.kind = is_ten_crop ? CropSet::Kind::kTenCrop : CropSet::Kind::kFiveCrop, .range = range};
}

int64_t CodeInfo::num_tokens() const {
  if (patch_nums.empty()) return grid.at(0) * grid.at(1);
  int64_t tokens = 0;
  for (const int64_t side : patch_nums) tokens += side * side;
  return tokens;
}

int64_t CodeInfo::num_crops() const { return first_crop(crop_sets.size()); }

int64_t CodeInfo::first_crop(size_t crop_set) const {
  int64_t first = 0;
  for (size_t i = 0; i < crop_set; ++i) first += crop_sets[i].count();
  return first;
}

io::Dtype CodeInfo::dtype() const {
  const bool fits = codebook_size >= 1 && codebook_size <= 65536;
  return fits ? io::Dtype::kUInt16 : io::Dtype::kInt32;
}

void validate(const CodeInfo& info) {
  constexpr auto kCorrupt = ErrorCode::kDataCorrupt;
  require(info.grid.size() == 2, kCorrupt, "the grid is ", format_shape(info.grid),
          ", expected [height, width]");
  for (const auto* sides : {&info.grid, &info.patch_nums}) {
    for (const int64_t side : *sides) {
      require(side >= 1 && side <= 1024, kCorrupt, "a grid side is ", side, ", expected 1 to 1024");
    }
  }
  require(info.patch_nums.size() <= 1024 && info.num_tokens() <= kMaxTokens, kCorrupt,
          "an image has ", info.num_tokens(), " codes, at most ", kMaxTokens, " are supported");
  require(info.codebook_size >= 0 && info.codebook_size <= std::numeric_limits<int32_t>::max(),
          kCorrupt, "the codebook has ", info.codebook_size, " codes");
  require(info.image_size >= 0 && info.image_size <= 65536, kCorrupt, "the image size is ",
          info.image_size);
  require(!info.crop_sets.empty() && info.crop_sets.size() <= kMaxCropSets, kCorrupt,
          info.crop_sets.size(), " crop sets, expected 1 to ", kMaxCropSets);
}

Json info_to_json(const CodeInfo& info) {
  Json json = Json::object();
  json.set("tokenizer", Json::string(info.tokenizer));
  json.set("codebook_size", Json::number(info.codebook_size));
  json.set("image_size", Json::number(info.image_size));
  json.set("grid", numbers(info.grid));
  json.set("patch_nums", numbers(info.patch_nums));
  Json& crops = json.set("crops", Json::array());
  for (const CropSet& set : info.crop_sets) crops.add(Json::string(set.name()));
  json.set("precision", Json::string(info.precision));
  return json;
}

CodeInfo info_from_json(const Json& json) {
  CodeInfo info;
  info.tokenizer = json.get_string("tokenizer");
  info.codebook_size = json.get_int("codebook_size");
  info.image_size = json.get_int("image_size");
  info.grid = read_numbers(json, "grid");
  info.patch_nums = read_numbers(json, "patch_nums");
  for (const Json& item : json.get_array("crops").items) {
    try {
      info.crop_sets.push_back(parse_crop_set(item.text));
    } catch (const Error& error) {
      throw Error(ErrorCode::kDataCorrupt, error.what());
    }
  }
  info.precision = json.get_string("precision");
  validate(info);
  require(info.codebook_size >= 1, ErrorCode::kDataCorrupt, "the codebook has no codes");
  return info;
}

void check_fits(const CodeInfo& info, const CodeRequirements& required) {
  constexpr auto kMisfit = ErrorCode::kInvalidArgument;
  constexpr std::string_view kAgain =
      "; extract the codes again with the right tokenizer, or change the config";
  require(
      required.tokenizer.empty() || info.tokenizer.empty() || info.tokenizer == required.tokenizer,
      kMisfit, "the codes were made by the tokenizer ", printable(info.tokenizer),
      ", but the config asks for ", required.tokenizer, kAgain);
  require(required.codebook_size == 0 || info.codebook_size == 0 ||
              info.codebook_size == required.codebook_size,
          kMisfit, "the codes have a vocabulary of ", info.codebook_size,
          ", but the config asks for ", required.codebook_size, kAgain);
  const std::string made_at =
      info.image_size == 0 ? "" : str_cat(" (images of ", info.image_size, " pixels)");
  require(required.grid.empty() || info.grid == required.grid, kMisfit, "the codes have the grid ",
          format_shape(info.grid), made_at, ", but the config asks for ",
          format_shape(required.grid), "; extract at another image size, or change the config");
  require(required.num_tokens == 0 || info.num_tokens() == required.num_tokens, kMisfit,
          "an image has ", info.num_tokens(), " codes", made_at, ", but the config asks for ",
          required.num_tokens, "; extract at another image size, or change the config");
  const auto num_classes = static_cast<int64_t>(info.classes.size());
  const bool is_official = info.codebook_size == 0;  // its labels are seen one by one
  require(required.num_classes == 0 || num_classes > 0 || is_official, kMisfit,
          "the codes have no labels, but the config asks for ", required.num_classes,
          " classes; extract them from a dataset with class folders");
  require(required.num_classes == 0 || num_classes <= required.num_classes, kMisfit,
          "the codes have ", num_classes, " classes, but the config asks for ",
          required.num_classes, "; raise the model's number of classes");
}

}  // namespace vgen::codes
