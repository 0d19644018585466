#include "vgen/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_set>

#include "vgen/io/atomic_file.h"
#include "vgen/io/detail/bytes.h"
#include "vgen/io/json.h"

namespace vgen::io {
namespace {

static_assert(std::endian::native == std::endian::little, "bytes of files are used as they are");

constexpr uint64_t kMaxHeaderSize = 100'000'000;  // the reference library's limit
constexpr size_t kMaxRank = 64;

struct NameRow {
  std::string_view name;
  Dtype dtype;
};
constexpr NameRow kNames[] = {
    {"BOOL", Dtype::kBool},          {"U8", Dtype::kUInt8},           {"I8", Dtype::kInt8},
    {"F8_E4M3", Dtype::kFloat8E4M3}, {"F8_E5M2", Dtype::kFloat8E5M2}, {"U16", Dtype::kUInt16},
    {"I16", Dtype::kInt16},          {"F16", Dtype::kFloat16},        {"BF16", Dtype::kBFloat16},
    {"U32", Dtype::kUInt32},         {"I32", Dtype::kInt32},          {"F32", Dtype::kFloat32},
    {"U64", Dtype::kUInt64},         {"I64", Dtype::kInt64},          {"F64", Dtype::kFloat64},
    {"C64", Dtype::kComplex64},
};

Dtype parse_safetensors_dtype(const std::string& name) {
  for (const NameRow& row : kNames) {
    if (row.name == name) return row.dtype;
  }
  throw_error(ErrorCode::kDataCorrupt, "dtype '", printable(name), "' is not supported");
}

std::string_view safetensors_dtype(Dtype dtype) {
  for (const NameRow& row : kNames) {
    if (row.dtype == dtype) return row.name;
  }
  throw_error(ErrorCode::kInvalidArgument, "safetensors has no dtype for ", dtype_name(dtype));
}

struct Entry {
  std::string name;
  Dtype dtype = Dtype::kFloat32;
  std::vector<int64_t> shape = {};
  uint64_t begin = 0;
  uint64_t end = 0;
};

int64_t natural(const Json& number, std::string_view what) {
  require(number.kind == Json::Kind::kInt && number.integer >= 0, ErrorCode::kDataCorrupt, what,
          " holds ",
          number.kind == Json::Kind::kInt ? std::to_string(number.integer)
                                          : std::string(json_kind_name(number.kind)),
          ", expected an integer of at least 0");
  return number.integer;
}

Entry parse_entry(const std::string& name, const Json& fields) {
  require(fields.kind == Json::Kind::kObject, ErrorCode::kDataCorrupt, "is ",
          json_kind_name(fields.kind), ", expected an object");
  Entry entry{.name = name, .dtype = parse_safetensors_dtype(fields.get_string("dtype"))};
  const Json& shape = fields.get_array("shape");
  require(shape.items.size() <= kMaxRank, ErrorCode::kDataCorrupt, "has ", shape.items.size(),
          " dimensions, at most ", kMaxRank, " are supported");
  for (const Json& size : shape.items) entry.shape.push_back(natural(size, "'shape'"));
  const Json& offsets = fields.get_array("data_offsets");
  require(offsets.items.size() == 2, ErrorCode::kDataCorrupt, "'data_offsets' has ",
          offsets.items.size(), " numbers, expected [begin, end]");
  entry.begin = static_cast<uint64_t>(natural(offsets.items[0], "'data_offsets'"));
  entry.end = static_cast<uint64_t>(natural(offsets.items[1], "'data_offsets'"));
  require(entry.begin <= entry.end, ErrorCode::kDataCorrupt, "'data_offsets' ends at ", entry.end,
          ", before its begin ", entry.begin);
  const uint64_t expected = count_bytes(entry.dtype, entry.shape);
  require(entry.end - entry.begin == expected, ErrorCode::kDataCorrupt, "'data_offsets' span ",
          entry.end - entry.begin, " bytes, but ", fields.get_string("dtype"), " ",
          format_shape(entry.shape), " needs ", expected);
  return entry;
}

Metadata parse_metadata(const Json& fields) {
  require(fields.kind == Json::Kind::kObject, ErrorCode::kDataCorrupt, "__metadata__ is ",
          json_kind_name(fields.kind), ", expected an object");
  Metadata metadata;
  for (const auto& [name, value] : fields.members) {
    require(value.kind == Json::Kind::kString, ErrorCode::kDataCorrupt, "__metadata__: '",
            printable(name), "' is ", json_kind_name(value.kind), ", expected a string");
    metadata[name] = value.text;
  }
  return metadata;
}

// Sorted by offset the tensors must tile the data without gap or overlap.
void check_tiling(std::vector<Entry>& entries, uint64_t data_size) {
  std::ranges::stable_sort(entries, [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t position = 0;
  for (const Entry& entry : entries) {
    require(entry.begin == position, ErrorCode::kDataCorrupt, "tensor '", printable(entry.name),
            "' begins at byte ", entry.begin, " of the data, expected ", position,
            entry.begin < position ? " (it overlaps the one before)" : " (a gap)");
    position = entry.end;
  }
  require(position == data_size, ErrorCode::kDataCorrupt, "the tensors end at byte ", position,
          " of the data, but the file has ", data_size,
          position > data_size ? " (it is cut off)" : " (something follows them)");
}

std::string_view header_text(std::span<const std::byte> bytes) {
  require(bytes.size() >= 8, ErrorCode::kDataCorrupt, "the file has ", bytes.size(),
          " bytes, too short for safetensors");
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), 8);
  require(size <= kMaxHeaderSize, ErrorCode::kDataCorrupt, "not safetensors: a header of ", size,
          " bytes is declared, at most ", kMaxHeaderSize, " are allowed");
  require(size <= bytes.size() - 8, ErrorCode::kDataCorrupt, "a header of ", size,
          " bytes is declared, but the file ends after ", bytes.size() - 8, " (it is cut off)");
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, size);
  require(text.starts_with('{'), ErrorCode::kDataCorrupt, "the header starts with '",
          printable(text.substr(0, 1)), "', expected '{'");
  return text;
}

Safetensors parse(const FileBytes& file) {
  const std::string_view text = header_text(file.bytes);
  const Json header = parse_json(text);
  Safetensors result;
  std::vector<Entry> entries;
  for (const auto& [name, fields] : header.members) {
    if (name == "__metadata__") {
      result.metadata = parse_metadata(fields);
      continue;
    }
    try {
      entries.push_back(parse_entry(name, fields));
    } catch (Error& error) {
      error.add_context(str_cat("tensor '", printable(name), "'"));
      throw;
    }
  }
  const auto data = file.bytes.subspan(8 + text.size());
  check_tiling(entries, data.size());
  for (Entry& entry : entries) {
    const auto bytes = data.subspan(entry.begin, entry.end - entry.begin);
    Array array(ArrayView{entry.dtype, std::move(entry.shape), bytes}, file.owner);
    result.tensors.push_back({std::move(entry.name), normalised(std::move(array))});
  }
  return result;
}

// Descending item size keeps every tensor aligned; the name makes the order unique.
std::vector<const NamedArray*> writing_order(const std::vector<NamedArray>& tensors) {
  std::vector<const NamedArray*> order;
  for (const NamedArray& tensor : tensors) order.push_back(&tensor);
  std::ranges::sort(order, [](const NamedArray* a, const NamedArray* b) {
    const size_t a_size = item_size(a->array.dtype), b_size = item_size(b->array.dtype);
    return a_size != b_size ? a_size > b_size : a->name < b->name;
  });
  return order;
}

void check_tensors(const std::vector<NamedArray>& tensors) {
  std::unordered_set<std::string_view> names;
  for (const auto& [name, array] : tensors) {
    require(name != "__metadata__", ErrorCode::kInvalidArgument,
            "no tensor can be named __metadata__ in safetensors");
    require(detail::is_utf8(name), ErrorCode::kInvalidArgument, "the name '", printable(name),
            "' is not UTF-8");
    require(names.insert(name).second, ErrorCode::kInvalidArgument, "two tensors are named '",
            printable(name), "'");
    require(array.data.size() == count_bytes(array.dtype, array.shape), ErrorCode::kInternal,
            "tensor '", printable(name), "' has ", array.data.size(), " bytes for ",
            format_shape(array.shape));
  }
}

std::string make_header(const std::vector<const NamedArray*>& order, const Metadata& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) {
    Json& fields = header.set("__metadata__", Json::object());
    for (const auto& [name, value] : metadata) fields.set(name, Json::string(value));
  }
  int64_t offset = 0;
  for (const NamedArray* tensor : order) {
    Json entry = Json::object();
    entry.set("dtype", Json::string(safetensors_dtype(tensor->array.dtype)));
    Json& shape = entry.set("shape", Json::array());
    for (const int64_t size : tensor->array.shape) shape.add(Json::number(size));
    Json& offsets = entry.set("data_offsets", Json::array());
    offsets.add(Json::number(offset));
    offset += static_cast<int64_t>(tensor->array.data.size());
    offsets.add(Json::number(offset));
    header.set(tensor->name, std::move(entry));
  }
  std::string text = dump_json(header);
  text.append((8 - text.size() % 8) % 8, ' ');
  require(text.size() <= kMaxHeaderSize, ErrorCode::kInvalidArgument, "the header would have ",
          text.size(), " bytes, at most ", kMaxHeaderSize, " are allowed");
  return text;
}

}  // namespace

const Array* Safetensors::find(std::string_view name) const {
  const auto found = std::ranges::find(tensors, name, &NamedArray::name);
  return found == tensors.end() ? nullptr : &found->array;
}

Safetensors parse_safetensors(const FileBytes& file) {
  try {
    return parse(file);
  } catch (Error& error) {
    error.add_context(file.name);
    throw;
  }
}

Safetensors read_safetensors(const std::string& path) { return parse_safetensors(map_file(path)); }

void write_safetensors(const std::string& path, const std::vector<NamedArray>& tensors,
                       const Metadata& metadata) {
  try {
    check_tensors(tensors);
    const auto order = writing_order(tensors);
    const std::string header = make_header(order, metadata);
    AtomicFile file(path);
    const uint64_t header_size = header.size();
    file.write(std::as_bytes(std::span(&header_size, 1)));
    file.write(header);
    for (const NamedArray* tensor : order) file.write(tensor->array.data);
    file.commit();
  } catch (Error& error) {
    if (error.code() == ErrorCode::kInvalidArgument) error.add_context(path);
    throw;
  }
}

std::map<std::string, std::vector<std::string>> parse_shard_index(const FileBytes& file) {
  try {
    const std::string_view text(reinterpret_cast<const char*>(file.bytes.data()),
                                file.bytes.size());
    const Json index = parse_json(text);
    std::map<std::string, std::vector<std::string>> shards;
    for (const auto& [tensor, shard] : index.get_object("weight_map").members) {
      require(shard.kind == Json::Kind::kString, ErrorCode::kDataCorrupt, "tensor '",
              printable(tensor), "' is mapped to ", json_kind_name(shard.kind),
              ", expected a file name");
      require(!shard.text.empty() && !shard.text.starts_with('.') &&
                  shard.text.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos,
              ErrorCode::kDataCorrupt, "tensor '", printable(tensor), "' is mapped to '",
              printable(shard.text), "', expected the plain name of a file beside the index");
      shards[shard.text].push_back(tensor);
    }
    return shards;
  } catch (Error& error) {
    error.add_context(file.name);
    throw;
  }
}

}  // namespace vgen::io
