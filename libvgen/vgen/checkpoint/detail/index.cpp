#include "vgen/checkpoint/detail/index.h"

#include <cmath>
#include <filesystem>

#include "vgen/core/error.h"
#include "vgen/io/atomic_file.h"
#include "vgen/io/crc32c.h"
#include "vgen/io/mapped_file.h"

namespace vgen::checkpoint::detail {

namespace {

namespace fs = std::filesystem;
using io::Json;

constexpr std::string_view kFormat = "vgen-checkpoint-1";

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
io::SlicedTensor parse_tensor(const std::string& name, const Json& fields, const Json& files) {
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
    const std::string& file = items[0].text;
    require(files.find(file) != nullptr, ErrorCode::kDataCorrupt, "lies in '", printable(file),
            "', which is not listed");
    tensor.slices.push_back({file, integer(items[1], "'slices'"), integer(items[2], "'slices'")});
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

std::vector<io::SlicedTensor> parse_tensors(const Json& tensors, const Json& files) {
  std::vector<io::SlicedTensor> result;
  for (const auto& [name, fields] : tensors.members) {
    try {
      result.push_back(parse_tensor(name, fields, files));
    } catch (Error& error) {
      error.add_context(str_cat("tensor '", printable(name), "'"));
      throw;
    }
    io::check_slices(result.back());
  }
  return result;
}

}  // namespace

Index read_index(const std::string& folder) {
  const std::string path = folder + "/index.json";
  require(fs::exists(path), ErrorCode::kDataCorrupt, "no index.json: the writing was not finished");
  const Json root = io::parse_json(io::read_text_file(path, io::kMaxIndexBytes), io::kIndexLimits);
  require(root.get_string("format") == kFormat, ErrorCode::kDataCorrupt,
          "index.json has the format '", printable(root.get_string("format")), "', expected '",
          kFormat, "'");
  Index index{.step = root.get_int("step"), .metrics = {}, .files = {}, .tensors = {}};
  index.files = root.get_object("files");
  for (const auto& [name, entry] : index.files.members) {
    require(is_plain_name(name), ErrorCode::kDataCorrupt, "index.json names '", printable(name),
            "', which is no plain file name");
  }
  const Json& metrics = root.get_object("metrics");
  for (const auto& [name, value] : metrics.members) index.metrics[name] = metrics.get_float(name);
  if (root.find("tensors") == nullptr) return index;
  for (const auto& [file, tensors] : root.get_object("tensors").members) {
    try {
      index.tensors[file] = parse_tensors(tensors, index.files);
    } catch (Error& error) {
      error.add_context("index.json: " + printable(file));
      throw;
    }
  }
  return index;
}

void write_index(const std::string& folder, const Index& index) {
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
  io::write_file_atomically(folder + "/index.json", io::dump_json(root, 1) + "\n");
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

}  // namespace vgen::checkpoint::detail
