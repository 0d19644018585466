#include "vgen/checkpoint/detail/index.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <unordered_set>

#include "vgen/core/error.h"
#include "vgen/io/atomic_file.h"
#include "vgen/io/crc32c.h"
#include "vgen/io/mapped_file.h"

namespace vgen::checkpoint::detail {

namespace {

namespace fs = std::filesystem;
using io::Json;

constexpr std::string_view kFormat = "vgen-checkpoint-1";
constexpr std::string_view kState = "state.json";
constexpr std::string_view kChecksum = "crc32c";  // of the other fields
constexpr std::string_view kFields[] = {"format", "step", "metrics", "files", "tensors"};

using Names = std::unordered_set<std::string_view>;

bool is_plain_name(const std::string& name) {
  return !name.empty() && name.find('/') == std::string::npos && name != "." && name != "..";
}

const std::vector<Json>& items_of(const Json& value, size_t count, std::string_view what) {
  require(value.kind == Json::Kind::kArray && value.items.size() == count, ErrorCode::kDataCorrupt,
          what, " holds ", io::json_kind_name(value.kind), " of ", value.items.size(),
          " items, expected an array of ", count);
  return value.items;
}

int64_t integer(const Json& value, std::string_view what) {
  require(value.kind == Json::Kind::kInt, ErrorCode::kDataCorrupt, what, " holds ",
          io::json_kind_name(value.kind), ", expected an integer");
  return value.integer;
}

// {"dtype": "float32", "shape": [96, 32], "slices": [["model-00001-of-00002.safetensors", 0, 99]]}
io::SlicedTensor parse_tensor(const std::string& name, const Json& fields) {
  require(fields.kind == Json::Kind::kObject, ErrorCode::kDataCorrupt, "is ",
          io::json_kind_name(fields.kind), ", expected an object");
  const auto dtype = io::parse_dtype(fields.get_string("dtype"));
  require(dtype.has_value(), ErrorCode::kDataCorrupt, "has the dtype '",
          printable(fields.get_string("dtype")), "', which is unknown");
  io::SlicedTensor tensor{.name = name, .dtype = *dtype, .shape = {}, .slices = {}};
  for (const Json& size : fields.get_array("shape").items) {
    tensor.shape.push_back(integer(size, "'shape'"));
  }
  for (const Json& slice : fields.get_array("slices").items) {
    const auto& items = items_of(slice, 3, "'slices'");
    tensor.slices.push_back(
        {items[0].text, integer(items[1], "'slices'"), integer(items[2], "'slices'")});
  }
  return tensor;
}

Json tensor_json(const io::SlicedTensor& tensor) {
  Json fields = Json::object();
  fields.set("dtype", Json::string(io::dtype_name(tensor.dtype)));
  Json& shape = fields.set("shape", Json::array());
  for (const int64_t size : tensor.shape) shape.add(Json::number(size));
  Json& slices = fields.set("slices", Json::array());
  for (const io::Slice& slice : tensor.slices) {
    Json& row = slices.add(Json::array());
    row.add(Json::string(slice.file));
    row.add(Json::number(slice.begin));
    row.add(Json::number(slice.length));
  }
  return fields;
}

std::vector<io::SlicedTensor> parse_tensors(const Json& tensors) {
  std::vector<io::SlicedTensor> result;
  for (const auto& [name, fields] : tensors.members) {
    try {
      result.push_back(parse_tensor(name, fields));
    } catch (Error& error) {
      error.add_context(str_cat("tensor '", printable(name), "'"));
      throw;
    }
    io::check_slices(result.back());
  }
  return result;
}

Names listed_names(const Index& index) {
  Names names;
  for (const auto& [name, entry] : index.files.members) names.insert(name);
  return names;
}

// The slices of a file in shards lie in the shards of one set, each of them, and all are listed.
void check_shards(const std::string& file, const std::vector<io::SlicedTensor>& tensors,
                  const Names& listed) {
  require(!listed.contains(file), ErrorCode::kDataCorrupt, "lies in shards, but is listed too");
  Names shards;
  int64_t count = 0;
  for (const io::SlicedTensor& tensor : tensors) {
    for (const io::Slice& slice : tensor.slices) {
      if (!shards.insert(slice.file).second) continue;
      const auto name = io::parse_shard_name(slice.file);
      const bool is_listed = listed.contains(slice.file);
      const bool is_of_set =
          name && name->file == file && (shards.size() == 1 || name->count == count);
      require(is_listed && is_of_set, ErrorCode::kDataCorrupt, "tensor '", printable(tensor.name),
              "' lies in '", printable(slice.file), "', which is ",
              std::string_view(is_listed ? "no shard of this file" : "not listed"));
      count = name->count;
    }
  }
  require(!shards.empty() && static_cast<int64_t>(shards.size()) == count, ErrorCode::kDataCorrupt,
          "its tensors lie in ", shards.size(), " of ", count, " shards, expected all");
}

// What a reader may take must be covered by a checksum.
void check_listed(const Index& index) {
  const Names listed = listed_names(index);
  require(listed.contains(kState), ErrorCode::kDataCorrupt, "index.json does not list ", kState);
  for (const auto& [file, tensors] : index.tensors) {
    try {
      check_shards(file, tensors, listed);
    } catch (Error& error) {
      error.add_context(str_cat("index.json: ", printable(file)));
      throw;
    }
  }
}

// Of all fields but the checksum itself, however the text is laid out.
std::string checksum_of(const Json& root) {
  const std::string text = io::dump_json(root);
  return io::crc32c_text(io::crc32c(std::as_bytes(std::span(text.data(), text.size()))));
}

// Takes the checksum out of the fields and compares it. Returns what it is, or would be.
std::string check_fields(Json& root) {
  std::optional<std::string> stored;
  if (root.find(kChecksum) != nullptr) {
    stored = root.get_string(kChecksum);
    std::erase_if(root.members, [](const auto& member) { return member.first == kChecksum; });
  }
  for (const auto& [name, value] : root.members) {
    require(std::ranges::find(kFields, name) != std::end(kFields), ErrorCode::kDataCorrupt,
            "index.json has the unknown field '", printable(name), "'");
  }
  std::string found = checksum_of(root);
  require(!stored || *stored == found, ErrorCode::kDataCorrupt, "index.json has the checksum ",
          found, ", expected ", printable(stored.value_or("")));
  return found;
}

}  // namespace

Index parse_index(std::string_view text) {
  Json root;
  try {
    root = io::parse_json(text, io::kIndexLimits);
  } catch (Error& error) {
    error.add_context("index.json");
    throw;
  }
  require(root.get_string("format") == kFormat, ErrorCode::kDataCorrupt,
          "index.json has the format '", printable(root.get_string("format")), "', expected '",
          kFormat, "'");
  Index index;
  index.checksum = check_fields(root);
  index.step = root.get_int("step");
  index.files = root.get_object("files");
  for (const auto& [name, entry] : index.files.members) {
    require(is_plain_name(name), ErrorCode::kDataCorrupt, "index.json names '", printable(name),
            "', which is no plain file name");
  }
  const Json& metrics = root.get_object("metrics");
  for (const auto& [name, value] : metrics.members) index.metrics[name] = metrics.get_float(name);
  if (root.find("tensors") != nullptr) {
    for (const auto& [file, tensors] : root.get_object("tensors").members) {
      try {
        index.tensors[file] = parse_tensors(tensors);
      } catch (Error& error) {
        error.add_context(str_cat("index.json: ", printable(file)));
        throw;
      }
    }
  }
  check_listed(index);
  return index;
}

std::string dump_index(const Index& index) {
  check_listed(index);
  Json root = Json::object();
  root.set("format", Json::string(kFormat));
  root.set("step", Json::number(index.step));
  Json& metrics = root.set("metrics", Json::object());
  for (const auto& [name, value] : index.metrics) {
    if (std::isfinite(value)) metrics.set(name, Json::number(value));
  }
  root.set("files", index.files);
  if (!index.tensors.empty()) {
    Json& files = root.set("tensors", Json::object());
    for (const auto& [file, tensors] : index.tensors) {
      Json& rows = files.set(file, Json::object());
      for (const io::SlicedTensor& tensor : tensors) rows.set(tensor.name, tensor_json(tensor));
    }
  }
  root.set(kChecksum, Json::string(checksum_of(root)));
  return io::dump_json(root, 1) + "\n";
}

Index read_index(const std::string& folder) {
  const std::string path = folder + "/index.json";
  require(fs::exists(path), ErrorCode::kDataCorrupt, "no index.json: the writing was not finished");
  return parse_index(io::read_text_file(path, io::kMaxIndexBytes));
}

void write_index(const std::string& folder, const Index& index) {
  const std::string text = dump_index(index);
  require(text.size() <= io::kMaxIndexBytes, ErrorCode::kInternal, "index.json would have ",
          text.size(), " bytes, at most ", io::kMaxIndexBytes, " are read; save on fewer ranks");
  io::write_file_atomically(folder + "/index.json", text);
}

Json describe_file(const std::string& path) {
  const io::MappedFile file(path);
  Json entry = Json::object();
  entry.set("size_bytes", Json::number(static_cast<int64_t>(file.bytes().size())));
  entry.set("crc32c", Json::string(io::crc32c_text(io::crc32c(file.bytes()))));
  return entry;
}

void check_file(const std::string& folder, const std::string& name, const Json& entry,
                bool with_checksum) {
  const std::string path = str_cat(folder, "/", name);
  std::error_code error;
  const auto size = fs::file_size(path, error);
  require(!error, ErrorCode::kDataCorrupt, name, " is missing");
  const int64_t expected = entry.get_int("size_bytes");
  require(expected >= 0 && size == static_cast<uint64_t>(expected), ErrorCode::kDataCorrupt, name,
          " has ", size, " bytes, expected ", expected);
  const std::string& checksum = entry.get_string("crc32c");
  if (!with_checksum || size == 0) return;
  const std::string found = io::crc32c_text(io::crc32c(io::MappedFile(path).bytes()));
  require(found == checksum, ErrorCode::kDataCorrupt, name, " has the checksum ", found,
          ", expected ", printable(checksum));
}

void check_unlisted(const std::string& folder, const Index& index) {
  const Names listed = listed_names(index);
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    const bool holds_weights =
        !name.starts_with('.') &&
        (name.ends_with(".safetensors") || name.ends_with(".bin") || name.ends_with(".index.json"));
    require(!holds_weights || listed.contains(name), ErrorCode::kDataCorrupt, printable(name),
            " is not listed in index.json; move it to another folder");
  }
  require(!error, ErrorCode::kDataCorrupt, "the folder cannot be listed: ", error.message());
}

}  // namespace vgen::checkpoint::detail
