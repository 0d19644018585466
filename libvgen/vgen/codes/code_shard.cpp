#include "vgen/codes/code_shard.h"

#include <algorithm>
#include <limits>

#include "vgen/core/error.h"
#include "vgen/io/atomic_file.h"
#include "vgen/io/crc32c.h"
#include "vgen/io/mapped_file.h"

namespace vgen::codes {
namespace {

using io::Array;
using io::Json;

constexpr std::string_view kShardFormat = "vgen-codes-shard-1";
constexpr std::string_view kIndexFormat = "vgen-codes-1";
constexpr auto kCorrupt = ErrorCode::kDataCorrupt;

template <class T>
io::ArrayView view_of(const std::vector<T>& values, std::vector<int64_t> shape) {
  return {io::dtype_of<T>(), std::move(shape), std::as_bytes(std::span(values))};
}

io::NamedArray named(std::string name, io::ArrayView view) {
  return {std::move(name), Array(std::move(view), nullptr)};
}

/// Of the tensors beside the codes, in a fixed order.
std::string tables_checksum(std::initializer_list<std::span<const std::byte>> tables) {
  uint32_t crc = 0;
  for (const auto& table : tables) crc = io::crc32c(table, crc);
  return io::crc32c_text(crc);
}

const std::string& metadata_of(const io::Safetensors& file, const std::string& name) {
  const auto found = file.metadata.find(name);
  require(found != file.metadata.end(), kCorrupt, "not a shard of codes: no '", name,
          "' in its metadata");
  return found->second;
}

const Array& tensor_of(const io::Safetensors& file, const std::string& name, io::Dtype dtype,
                       const std::vector<int64_t>& shape) {
  const Array* array = file.find(name);
  require(array != nullptr, kCorrupt, "no tensor '", name, "'");
  require(array->dtype == dtype && array->shape == shape, kCorrupt, "'", name, "' is ",
          io::dtype_name(array->dtype), " ", format_shape(array->shape), ", expected ",
          io::dtype_name(dtype), " ", format_shape(shape));
  return *array;
}

Shard parse_shard(const io::Safetensors& file) {
  Shard shard;
  require(metadata_of(file, "format") == kShardFormat, kCorrupt, "has the format '",
          printable(metadata_of(file, "format")), "', expected '", kShardFormat, "'");
  require(parse_int(metadata_of(file, "shard"), shard.number) && shard.number >= 0, kCorrupt,
          "its metadata has no shard number");
  shard.settings = io::parse_json(metadata_of(file, "settings"));
  const Array* codes = file.find("codes");
  require(codes != nullptr && codes->shape.size() == 3, kCorrupt,
          "no tensor 'codes' of three dimensions");
  require(codes->dtype == io::Dtype::kUInt16 || codes->dtype == io::Dtype::kInt32, kCorrupt,
          "'codes' is ", io::dtype_name(codes->dtype), ", expected uint16 or int32");
  const int64_t images = codes->shape[0], crops = codes->shape[1];
  shard.codes = *codes;
  shard.checksums = tensor_of(file, "checksums", io::Dtype::kUInt32, {images, crops});
  shard.labels = tensor_of(file, "labels", io::Dtype::kInt32, {images});
  shard.images = tensor_of(file, "images", io::Dtype::kInt64, {images});
  shard.name_offsets = tensor_of(file, "name_offsets", io::Dtype::kUInt32, {images + 1});
  const auto offsets = shard.name_offsets.as<uint32_t>();
  shard.names = tensor_of(file, "names", io::Dtype::kUInt8, {int64_t{offsets.back()}});
  const std::string found =
      tables_checksum({shard.labels.data, shard.images.data, shard.name_offsets.data,
                       shard.names.data, shard.checksums.data});
  require(found == metadata_of(file, "tables_crc32c"), kCorrupt, "its tables have the checksum ",
          found, ", expected ", printable(metadata_of(file, "tables_crc32c")));
  require(std::ranges::is_sorted(offsets), kCorrupt, "'name_offsets' does not ascend");
  return shard;
}

Json shard_to_json(const ShardEntry& shard) {
  Json json = Json::object();
  json.set("file", Json::string(shard.file));
  json.set("images", Json::number(shard.images));
  json.set("size_bytes", Json::number(shard.size_bytes));
  json.set("crc32c", Json::string(shard.crc32c));
  return json;
}

ShardEntry shard_from_json(const Json& json) {
  ShardEntry shard{.file = json.get_string("file"),
                   .images = json.get_int("images"),
                   .size_bytes = json.get_int("size_bytes"),
                   .crc32c = json.get_string("crc32c")};
  require(!shard.file.empty() && !shard.file.starts_with('.') &&
              shard.file.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos,
          kCorrupt, "names the shard '", printable(shard.file), "', expected a plain file name");
  require(shard.images >= 0 && shard.images <= (int64_t{1} << 32), kCorrupt, shard.file, " has ",
          shard.images, " images");
  return shard;
}

}  // namespace

std::string shard_name(int64_t shard) {
  const std::string digits = std::to_string(shard);
  return str_cat("shard-", std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0'), digits,
                 ".safetensors");
}

ShardBuilder::ShardBuilder(const CodeInfo& info) : info_(info) { validate(info); }

template <class Code>
void ShardBuilder::append(std::span<const int64_t> code_AT) {
  const auto tokens = static_cast<size_t>(info_.num_tokens());
  std::vector<Code> row(tokens);
  for (size_t begin = 0; begin < code_AT.size(); begin += tokens) {
    for (size_t t = 0; t < tokens; ++t) {
      const int64_t code = code_AT[begin + t];
      require(code >= 0 && code < info_.codebook_size, ErrorCode::kInternal, "code ", code,
              " of a tokenizer with ", info_.codebook_size, " codes");
      row[t] = static_cast<Code>(code);
    }
    const auto bytes = std::as_bytes(std::span(row));
    codes_.insert(codes_.end(), bytes.begin(), bytes.end());
    checksums_.push_back(io::crc32c(bytes));
  }
}

void ShardBuilder::add(int64_t image, int64_t label, std::string_view name,
                       std::span<const int64_t> code_AT) {
  require(static_cast<int64_t>(code_AT.size()) == info_.num_crops() * info_.num_tokens(),
          ErrorCode::kInternal, "image ", image, " has ", code_AT.size(), " codes, expected ",
          info_.num_crops(), " x ", info_.num_tokens());
  require(images_.empty() || images_.back() < image, ErrorCode::kInternal, "image ", image,
          " comes after image ", images_.empty() ? 0 : images_.back());
  if (info_.dtype() == io::Dtype::kUInt16) {
    append<uint16_t>(code_AT);
  } else {
    append<int32_t>(code_AT);
  }
  labels_.push_back(static_cast<int32_t>(label));
  images_.push_back(image);
  names_.insert(names_.end(), name.begin(), name.end());
  require(names_.size() <= std::numeric_limits<uint32_t>::max(), ErrorCode::kInvalidArgument,
          "the names of the images in a shard are longer than 4 GiB: use smaller shards");
  name_offsets_.push_back(static_cast<uint32_t>(names_.size()));
}

void ShardBuilder::write(const std::string& folder, int64_t shard, const Json& settings) const {
  const int64_t images = size(), crops = info_.num_crops();
  const auto labels = view_of(labels_, {images});
  const auto indices = view_of(images_, {images});
  const auto offsets = view_of(name_offsets_, {images + 1});
  const auto names = view_of(names_, {static_cast<int64_t>(names_.size())});
  const auto checksums = view_of(checksums_, {images, crops});
  const io::Metadata metadata = {
      {"format", std::string(kShardFormat)},
      {"shard", std::to_string(shard)},
      {"settings", io::dump_json(settings)},
      {"tables_crc32c",
       tables_checksum({labels.data, indices.data, offsets.data, names.data, checksums.data})}};
  io::write_safetensors(
      str_cat(folder, "/", shard_name(shard)),
      {named("codes", {info_.dtype(), {images, crops, info_.num_tokens()}, codes_}),
       named("labels", labels), named("images", indices), named("name_offsets", offsets),
       named("names", names), named("checksums", checksums)},
      metadata);
}

std::string Shard::name(int64_t row) const {
  const auto offsets = name_offsets.as<uint32_t>();
  const uint32_t begin = offsets[static_cast<size_t>(row)];
  const uint32_t end = offsets[static_cast<size_t>(row) + 1];
  return {reinterpret_cast<const char*>(names.data.data()) + begin, end - begin};
}

void Shard::read(int64_t row, int64_t crop, int64_t codebook_size,
                 std::span<int64_t> code_T) const {
  const auto place = static_cast<size_t>(row * num_crops() + crop);
  const size_t size_bytes = code_T.size() * io::item_size(codes.dtype);
  const auto bytes = codes.data.subspan(place * size_bytes, size_bytes);
  const uint32_t expected = checksums.as<uint32_t>()[place], found = io::crc32c(bytes);
  require(found == expected, kCorrupt, path, ": image ", row, " (", printable(name(row)),
          "), crop ", crop, ": its codes have the checksum ", io::crc32c_text(found), ", expected ",
          io::crc32c_text(expected));
  const auto copy = [&](const auto* from) { std::copy_n(from, code_T.size(), code_T.begin()); };
  if (codes.dtype == io::Dtype::kUInt16) {
    copy(reinterpret_cast<const uint16_t*>(bytes.data()));
  } else {
    copy(reinterpret_cast<const int32_t*>(bytes.data()));
  }
  const auto [low, high] = std::ranges::minmax(code_T);
  require(low >= 0 && high < codebook_size, kCorrupt, path, ": image ", row, " (",
          printable(name(row)), ") has the code ", low < 0 ? low : high, ", expected 0 to ",
          codebook_size - 1);
}

Shard open_shard(const std::string& path) {
  const io::Safetensors file = io::read_safetensors(path);
  try {
    Shard shard = parse_shard(file);
    shard.path = path;
    return shard;
  } catch (Error& error) {
    error.add_context(path);
    throw;
  }
}

CodeIndex read_index(const std::string& folder) {
  const std::string path = str_cat(folder, "/", kIndexName);
  const std::string text = io::read_text_file(path, size_t{256} << 20);
  try {
    const Json json = io::parse_json(text, {.max_nodes = 50'000'000});
    require(json.get_string("format") == kIndexFormat, kCorrupt, "has the format '",
            printable(json.get_string("format")), "', expected '", kIndexFormat, "'");
    CodeIndex index;
    index.settings = json.get_object("settings");
    index.info = info_from_json(index.settings);
    for (const Json& name : json.get_array("classes").items) {
      require(name.kind == Json::Kind::kString, kCorrupt, "'classes' holds ",
              io::json_kind_name(name.kind), ", expected strings");
      index.info.classes.push_back(name.text);
    }
    for (const Json& shard : json.get_array("shards").items) {
      index.shards.push_back(shard_from_json(shard));
      index.num_images += index.shards.back().images;
    }
    require(index.num_images == json.get_int("images"), kCorrupt, "the shards have ",
            index.num_images, " images, but 'images' is ", json.get_int("images"));
    return index;
  } catch (Error& error) {
    error.add_context(path);
    throw;
  }
}

void write_index(const std::string& folder, const CodeIndex& index) {
  Json json = Json::object();
  json.set("format", Json::string(kIndexFormat));
  json.set("images", Json::number(index.num_images));
  json.set("settings", index.settings);
  Json& classes = json.set("classes", Json::array());
  for (const std::string& name : index.info.classes) classes.add(Json::string(name));
  Json& shards = json.set("shards", Json::array());
  for (const ShardEntry& shard : index.shards) shards.add(shard_to_json(shard));
  io::write_file_atomically(str_cat(folder, "/", kIndexName), io::dump_json(json, 1) + "\n");
}

ShardEntry check_shard(const std::string& path, const CodeInfo& info, const Json& settings) {
  const Shard shard = open_shard(path);
  if (const auto difference = first_difference(shard.settings, settings)) {
    throw_error(ErrorCode::kInvalidArgument, path,
                ": belongs to another extraction: ", *difference);
  }
  require(shard.codes.dtype == info.dtype() && shard.num_crops() == info.num_crops() &&
              shard.num_tokens() == info.num_tokens(),
          kCorrupt, path, ": 'codes' is ", io::dtype_name(shard.codes.dtype), " ",
          format_shape(shard.codes.shape), ", expected ", io::dtype_name(info.dtype()), " [N, ",
          info.num_crops(), ", ", info.num_tokens(), "]");
  std::vector<int64_t> code_T(static_cast<size_t>(info.num_tokens()));
  for (int64_t row = 0; row < shard.size(); ++row) {
    for (int64_t crop = 0; crop < shard.num_crops(); ++crop) {
      shard.read(row, crop, info.codebook_size, code_T);
    }
  }
  const io::MappedFile file(path);
  return {.file = path.substr(path.rfind('/') + 1),
          .images = shard.size(),
          .size_bytes = static_cast<int64_t>(file.bytes().size()),
          .crc32c = io::crc32c_text(io::crc32c(file.bytes()))};
}

std::optional<std::string> first_difference(const Json& found, const Json& expected) {
  for (const auto& [name, value] : expected.members) {
    const Json* other = found.find(name);
    if (other == nullptr) return str_cat(name, " is missing");
    const std::string text = io::dump_json(*other), wanted = io::dump_json(value);
    if (text != wanted) {
      return str_cat(name, " is ", printable(text, 200), ", expected ", printable(wanted, 200));
    }
  }
  for (const auto& [name, value] : found.members) {
    if (expected.find(name) == nullptr) return str_cat(printable(name), " is not expected");
  }
  return {};
}

}  // namespace vgen::codes
