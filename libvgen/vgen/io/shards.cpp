#include "vgen/io/shards.h"

#include <algorithm>
#include <filesystem>

namespace vgen::io {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kExtension = ".safetensors";
constexpr size_t kMinDigits = 5;
constexpr int64_t kMaxShards = 1'000'000;  // names are made for all of them

std::string padded(int64_t number) {
  const std::string digits = std::to_string(number);
  return std::string(digits.size() < kMinDigits ? kMinDigits - digits.size() : 0, '0') + digits;
}

std::optional<int64_t> parse_number(std::string_view digits) {
  int64_t number = 0;
  const bool is_number = digits.size() >= kMinDigits &&
                         digits.find_first_not_of("0123456789") == std::string_view::npos;
  if (!is_number || !parse_int(digits, number)) return std::nullopt;
  return number;
}

std::string folder_of(const std::string& path) {
  const std::string folder = fs::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

std::string base_of(const std::string& path) { return fs::path(path).filename().string(); }

// "elements 12 to 19", "element 12".
std::string range_text(int64_t begin, int64_t end) {
  if (end - begin == 1) return str_cat("element ", begin);
  return str_cat("elements ", begin, " to ", end - 1);
}

}  // namespace

std::string dump_parts(const std::map<std::string, Part>& parts) {
  Json root = Json::object();
  for (const auto& [name, part] : parts) {
    Json& entry = root.set(name, Json::object());
    Json& shape = entry.set("shape", Json::array());
    for (const int64_t size : part.shape) shape.add(Json::number(size));
    entry.set("begin", Json::number(part.begin));
  }
  return dump_json(root);
}

std::map<std::string, Part> parse_parts(const Metadata& metadata) {
  std::map<std::string, Part> parts;
  const auto found = metadata.find(std::string(kPartsKey));
  if (found == metadata.end()) return parts;
  try {
    const Json root = parse_json(found->second, kIndexLimits);
    require(root.kind == Json::Kind::kObject, ErrorCode::kDataCorrupt, "expected an object");
    for (const auto& [name, entry] : root.members) {
      Part part{.shape = {}, .begin = entry.get_int("begin")};
      for (const Json& size : entry.get_array("shape").items) {
        require(size.kind == Json::Kind::kInt, ErrorCode::kDataCorrupt, "'shape' of '",
                printable(name), "' holds ", json_kind_name(size.kind), ", expected integers");
        part.shape.push_back(size.integer);
      }
      parts.emplace(name, std::move(part));
    }
  } catch (Error& error) {
    error.add_context(str_cat("metadata '", kPartsKey, "'"));
    throw;
  }
  return parts;
}

std::string shard_name(const std::string& file, int64_t number, int64_t count) {
  std::string stem = file;
  if (stem.ends_with(kExtension)) stem.resize(stem.size() - kExtension.size());
  return str_cat(stem, "-", padded(number), "-of-", padded(count), kExtension);
}

std::optional<ShardName> parse_shard_name(const std::string& name) {
  if (!name.ends_with(kExtension)) return std::nullopt;
  const std::string stem = name.substr(0, name.size() - kExtension.size());
  const size_t of = stem.rfind("-of-");
  if (of == std::string::npos || of == 0) return std::nullopt;
  const size_t dash = stem.rfind('-', of - 1);
  if (dash == std::string::npos || dash == 0) return std::nullopt;
  const auto number = parse_number(std::string_view(stem).substr(dash + 1, of - dash - 1));
  const auto count = parse_number(std::string_view(stem).substr(of + 4));
  if (!number || !count || *number < 1 || *number > *count) return std::nullopt;
  if (*count > kMaxShards) return std::nullopt;
  return ShardName{str_cat(stem.substr(0, dash), kExtension), *number, *count};
}

void check_slices(SlicedTensor& tensor) {
  const int64_t count = count_elements(tensor.shape);
  std::ranges::sort(tensor.slices, [](const Slice& a, const Slice& b) {
    return std::pair(a.begin, a.length) < std::pair(b.begin, b.length);
  });
  if (count > 0) std::erase_if(tensor.slices, [](const Slice& slice) { return slice.length == 0; });
  const std::string where = str_cat("tensor '", printable(tensor.name), "': ");
  int64_t position = 0;
  const Slice* before = nullptr;
  for (const Slice& slice : tensor.slices) {
    const bool is_inside = slice.begin >= 0 && slice.length >= 0 && slice.begin <= count &&
                           slice.length <= count - slice.begin;
    require(is_inside, ErrorCode::kDataCorrupt, where, printable(slice.file), " holds ",
            slice.length, " elements from ", slice.begin, " on, but the tensor ",
            format_shape(tensor.shape), " has ", count);
    require(slice.begin <= position, ErrorCode::kDataCorrupt, where, "no file holds ",
            range_text(position, slice.begin), " of ", count);
    require(slice.begin == position, ErrorCode::kDataCorrupt, where, "both ",
            printable(before ? before->file : ""), " and ", printable(slice.file), " hold ",
            range_text(slice.begin, std::min(position, slice.end())), " of ", count);
    position = slice.end();
    before = &slice;
  }
  require(position == count, ErrorCode::kDataCorrupt, where, "no file holds ",
          range_text(position, count), " of ", count);
}

std::vector<std::string> find_shards(const std::string& path) {
  std::error_code error;
  const std::string base = base_of(path);
  if (fs::is_regular_file(path, error)) return {base};
  std::optional<int64_t> count;
  for (const auto& entry : fs::directory_iterator(folder_of(path), error)) {
    const auto name = parse_shard_name(entry.path().filename().string());
    if (!name || name->file != base) continue;
    require(!count || *count == name->count, ErrorCode::kDataCorrupt, path,
            ": there are shards of several sets, 'of ", count.value_or(0), "' and 'of ",
            name->count, "'; remove those of one");
    count = name->count;
  }
  std::vector<std::string> shards;
  for (int64_t i = 1; count && i <= *count; ++i) shards.push_back(shard_name(base, i, *count));
  return shards;
}

bool has_tensor_file(const std::string& path) { return !find_shards(path).empty(); }

SlicedFile::SlicedFile(const std::string& path) : path_(path), folder_(folder_of(path)) {
  const std::vector<std::string> files = find_shards(path);
  require(!files.empty(), ErrorCode::kNotFound, path, ": no such file, nor shards of it");
  list_tensors(files);
}

SlicedFile::SlicedFile(const std::string& path, std::vector<SlicedTensor> tensors)
    : path_(path), folder_(folder_of(path)), tensors_(std::move(tensors)) {
  for (const SlicedTensor& tensor : tensors_) {
    for (const Slice& slice : tensor.slices) {
      if (first_file_.empty() || slice.file < first_file_) first_file_ = slice.file;
    }
  }
}

void SlicedFile::list_tensors(const std::vector<std::string>& files) {
  first_file_ = files.front();
  std::unordered_map<std::string, size_t> index_of;
  for (const std::string& file : files) {
    const Shard& opened = shard(file);
    try {
      for (const auto& [name, array] : opened.content.tensors) {
        const Part found = opened.part_of(name, array);
        const auto [place, is_new] = index_of.emplace(name, tensors_.size());
        if (is_new) tensors_.push_back({name, array.dtype, found.shape, {}});
        SlicedTensor& tensor = tensors_[place->second];
        if (tensor.dtype != array.dtype || tensor.shape != found.shape) {
          throw_error(ErrorCode::kDataCorrupt, "tensor '", printable(name), "' is of ",
                      dtype_name(array.dtype), " ", format_shape(found.shape), ", but of ",
                      dtype_name(tensor.dtype), " ", format_shape(tensor.shape), " in ",
                      tensor.slices.front().file);
        }
        tensor.slices.push_back({file, found.begin, array.num_elements()});
      }
    } catch (Error& error) {
      error.add_context(str_cat(folder_, "/", file));
      throw;
    }
  }
  try {
    for (SlicedTensor& tensor : tensors_) check_slices(tensor);
  } catch (Error& error) {
    error.add_context(path_);
    throw;
  }
}

Part SlicedFile::Shard::part_of(const std::string& name, const Array& array) const {
  const auto found = parts.find(name);
  return found == parts.end() ? Part{array.shape, 0} : found->second;
}

SlicedFile::Shard& SlicedFile::shard(const std::string& file) {
  const auto found = shards_.find(file);
  if (found != shards_.end()) return found->second;
  Shard shard{
      .bytes = map_file(str_cat(folder_, "/", file)), .content = {}, .arrays = {}, .parts = {}};
  shard.content = parse_safetensors(shard.bytes);
  try {
    shard.parts = parse_parts(shard.content.metadata);
  } catch (Error& error) {
    error.add_context(shard.bytes.name);
    throw;
  }
  for (const auto& [name, array] : shard.content.tensors) shard.arrays.emplace(name, &array);
  return shards_.emplace(file, std::move(shard)).first->second;
}

Array SlicedFile::row(const SlicedTensor& tensor, const Slice& slice) {
  const Shard& file = shard(slice.file);
  const auto found = file.arrays.find(tensor.name);
  require(found != file.arrays.end(), ErrorCode::kDataCorrupt, file.bytes.name, ": lacks tensor '",
          printable(tensor.name), "'");
  Array row = *found->second;
  require(row.dtype == tensor.dtype && row.num_elements() == slice.length, ErrorCode::kDataCorrupt,
          file.bytes.name, ": tensor '", printable(tensor.name), "' has ", row.num_elements(),
          " elements of ", dtype_name(row.dtype), ", expected ", slice.length, " of ",
          dtype_name(tensor.dtype));
  const Part part = file.part_of(tensor.name, row);
  require(part.begin == slice.begin && part.shape == tensor.shape, ErrorCode::kDataCorrupt,
          file.bytes.name, ": tensor '", printable(tensor.name), "' begins at element ", part.begin,
          " of ", format_shape(part.shape), ", expected element ", slice.begin, " of ",
          format_shape(tensor.shape));
  row.shape = {slice.length};
  return row;
}

Array SlicedFile::whole(const SlicedTensor& tensor) {
  if (tensor.slices.size() == 1) {
    Array array = row(tensor, tensor.slices.front());
    array.shape = tensor.shape;
    return array;
  }
  std::vector<Array> rows;
  for (const Slice& slice : tensor.slices) rows.push_back(row(tensor, slice));
  return make_array(tensor.dtype, tensor.shape, [&](std::span<std::byte> out) {
    const size_t size = item_size(tensor.dtype);
    for (size_t i = 0; i < rows.size(); ++i) {
      const Slice& slice = tensor.slices[i];
      const Array& values = rows[i];
      std::ranges::copy(values.data, out.subspan(static_cast<size_t>(slice.begin) * size).begin());
      // So that a large file is in memory once.
      const FileBytes& file = shard(slice.file).bytes;
      if (values.owner == file.owner) forget_pages(values.data);
    }
  });
}

Metadata SlicedFile::metadata() {
  if (first_file_.empty()) return {};
  Metadata metadata = shard(first_file_).content.metadata;
  metadata.erase(std::string(kPartsKey));
  return metadata;
}

std::vector<FileBytes> SlicedFile::opened() const {
  std::vector<FileBytes> files;
  for (const auto& [file, shard] : shards_) files.push_back(shard.bytes);
  return files;
}

}  // namespace vgen::io
