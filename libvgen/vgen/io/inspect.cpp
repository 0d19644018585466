#include "vgen/io/inspect.h"

#include <fnmatch.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "vgen/io/detail/sniff.h"
#include "vgen/io/json.h"
#include "vgen/io/npy.h"
#include "vgen/io/safetensors.h"
#include "vgen/io/shards.h"
#include "vgen/io/torch_file.h"

namespace vgen::io {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxMetadataText = 400;

bool matches(const std::string& name, const std::string& filter) {
  if (filter.empty()) return true;
  if (filter.find_first_of("*?[") == std::string::npos) {
    return name.find(filter) != std::string::npos;
  }
  return ::fnmatch(filter.c_str(), name.c_str(), 0) == 0;
}

// "model.safetensors" of a shard that holds parts of its tensors; other files are whole.
fs::path whole_file(const fs::path& path) {
  const auto name = parse_shard_name(path.filename().string());
  const bool has_parts =
      name && read_safetensors(path.string()).metadata.contains(std::string(kPartsKey));
  return has_parts ? path.parent_path() / name->file : path;
}

class Inspector {
 public:
  explicit Inspector(const InspectConfig& config) : config_(config) {}

  InspectReport run() {
    report_.path = config_.path;
    if (fs::is_directory(config_.path)) {
      add_folder(config_.path);
    } else {
      add_file(config_.path, "");
    }
    return std::move(report_);
  }

 private:
  void add(const std::string& name, const std::string& group, Dtype dtype,
           const std::vector<int64_t>& shape) {
    if (!matches(name, config_.filter)) return;
    report_.tensors.push_back({name, group, dtype, shape,
                               static_cast<uint64_t>(count_elements(shape)),
                               count_bytes(dtype, shape)});
  }

  void add_text(std::string name, std::string text) {
    if (!matches(name, config_.filter)) return;
    report_.metadata.emplace_back(std::move(name), std::move(text));
  }

  // `group` names the file when there are several.
  void add_file(const std::string& path, const std::string& group) {
    const FileBytes bytes = map_file(path);
    report_.file_bytes += bytes.bytes.size();
    detail::FileKind kind{};
    try {
      kind = detail::sniff(bytes.bytes);
    } catch (Error& error) {
      error.add_context(path);
      throw;
    }
    switch (kind) {
      case detail::FileKind::kSafetensors:
        return add_safetensors(bytes, group);
      case detail::FileKind::kShardIndex:
        return add_shards(bytes);
      case detail::FileKind::kTorchZip:
        return add_torch(bytes, "PyTorch zip");
      case detail::FileKind::kTorchLegacy:
        return add_torch(bytes, "PyTorch legacy stream");
      case detail::FileKind::kNpy: {
        report_.format = "npy";
        const Array array = parse_npy(bytes);
        return add(fs::path(path).stem().string(), group, array.dtype, array.shape);
      }
      case detail::FileKind::kNpz:
        return add_npz(bytes);
    }
  }

  void add_safetensors(const FileBytes& bytes, const std::string& group) {
    report_.format = "safetensors";
    const Safetensors file = parse_safetensors(bytes);
    for (const auto& [name, array] : file.tensors) add(name, group, array.dtype, array.shape);
    for (const auto& [name, part] : parse_parts(file.metadata)) {
      add_text(name, str_cat("from element ", part.begin, " on of ", format_shape(part.shape)));
    }
    for (const auto& [name, text] : file.metadata) {
      if (name == kPartsKey) continue;
      add_text(group.empty() ? name : str_cat(group, ": ", name),
               printable(text, kMaxMetadataText));
    }
  }

  void add_npz(const FileBytes& bytes) {
    report_.format = "npz";
    const NpzFile file(bytes);
    for (const std::string& name : file.names()) {
      const ArrayView array = config_.must_verify ? file.read(name) : file.describe(name);
      add(name, "", array.dtype, array.shape);
    }
  }

  void add_torch(const FileBytes& bytes, const char* format) {
    report_.format = format;
    const TorchFile file(bytes);
    for (const TorchFile::Leaf& leaf : file.flatten(file.root())) {
      if (leaf.value->kind == Value::Kind::kTensor) {
        const TorchTensor& tensor = leaf.value->tensor();
        if (config_.must_verify) file.read(tensor);
        add(leaf.name, leaf.group, tensor.dtype, tensor.shape);
      } else {
        add_text(leaf.name, format_value(*leaf.value));
      }
    }
  }

  void add_shards(const FileBytes& index) {
    const fs::path folder = fs::path(index.name).parent_path();
    for (const auto& [shard, names] : parse_shard_index(index)) {
      const std::string path = (folder / shard).string();
      require(detail::sniff(map_file(path).bytes) != detail::FileKind::kShardIndex,
              ErrorCode::kDataCorrupt, path, ": is an index itself, expected tensors");
      add_file(path, shard);
    }
    report_.format = str_cat("sharded ", report_.format);
  }

  // Whose tensors are whole, and in the files beside it.
  void add_sliced(const std::string& path, const std::string& group) {
    SlicedFile file(path);
    for (const SlicedTensor& tensor : file.tensors()) {
      add(tensor.name, group, tensor.dtype, tensor.shape);
    }
    for (const auto& [name, text] : file.metadata()) {
      add_text(str_cat(group, ": ", name), printable(text, kMaxMetadataText));
    }
    for (const FileBytes& bytes : file.opened()) report_.file_bytes += bytes.bytes.size();
  }

  // A checkpoint of a run: its tensor files by name, the scalars of its JSON files.
  void add_folder(const fs::path& folder) {
    std::set<fs::path> tensors, texts;
    for (const auto& entry : fs::directory_iterator(folder)) {
      const fs::path& path = entry.path();
      if (!entry.is_regular_file() || path.filename().string().starts_with('.')) continue;
      if (path.extension() == ".safetensors") tensors.insert(whole_file(path));
      if (path.extension() == ".json") texts.insert(path);
    }
    require(!tensors.empty(), ErrorCode::kNotFound, folder.string(),
            ": a folder without .safetensors files, expected a checkpoint such as "
            "RUN/checkpoints/step_0001000");
    for (const fs::path& path : tensors) {
      const std::string name = path.filename().string();
      if (fs::exists(path)) {
        add_file(path.string(), name);
      } else {
        add_sliced(path.string(), name);
      }
    }
    for (const fs::path& path : texts) add_scalars(path);
    report_.format = "checkpoint folder";
  }

  void add_scalars(const fs::path& path) {
    try {
      const Json root = parse_json(read_text_file(path.string(), kMaxIndexBytes), kIndexLimits);
      for (const auto& [name, value] : root.members) {
        if (value.kind == Json::Kind::kObject || value.kind == Json::Kind::kArray) continue;
        add_text(str_cat(path.filename().string(), ": ", name),
                 value.kind == Json::Kind::kString ? printable(value.text, kMaxMetadataText)
                                                   : dump_json(value));
      }
    } catch (Error& error) {
      error.add_context(path.string());
      throw;
    }
  }

  const InspectConfig& config_;
  InspectReport report_;
};

struct Total {
  uint64_t num_tensors = 0;
  uint64_t num_elements = 0;
  uint64_t size_bytes = 0;

  void add(const TensorInfo& tensor) {
    ++num_tensors;
    num_elements += tensor.num_elements;
    size_bytes += tensor.size_bytes;
  }
  std::string text() const {
    return str_cat(format_count(num_tensors), num_tensors == 1 ? " tensor, " : " tensors, ",
                   format_count(num_elements), " parameters, ", format_bytes(size_bytes));
  }
};

// Rows of texts as columns, the last one not padded.
std::string format_columns(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    out += "  ";
    for (size_t i = 0; i < row.size(); ++i) {
      out += row[i];
      if (i + 1 < row.size()) out.append(widths[i] - row[i].size() + 2, ' ');
    }
    out += "\n";
  }
  return out;
}

}  // namespace

InspectReport inspect(const InspectConfig& config) { return Inspector(config).run(); }

std::string format_report(const InspectReport& report) {
  std::string out =
      str_cat(report.path, ": ", report.format, ", ", format_bytes(report.file_bytes), "\n");
  const bool has_files = report.format.starts_with("sharded") || report.format.ends_with("folder");
  std::vector<std::vector<std::string>> rows;
  std::map<std::string, Total> totals;
  Total total;
  for (const TensorInfo& tensor : report.tensors) {
    rows.push_back({printable(tensor.name, 200), std::string(dtype_name(tensor.dtype)),
                    format_shape(tensor.shape), format_bytes(tensor.size_bytes)});
    if (has_files) rows.back().push_back(printable(tensor.group));
    totals[tensor.group].add(tensor);
    total.add(tensor);
  }
  out += format_columns(rows);
  if (totals.size() > 1) {
    std::vector<std::vector<std::string>> lines;
    for (const auto& [group, sum] : totals) {
      lines.push_back({group.empty() ? "(top level)" : printable(group), sum.text()});
    }
    out += "by " + std::string(has_files ? "file" : "dict") + ":\n" + format_columns(lines);
  }
  out += "total: " + total.text() + "\n";
  if (!report.metadata.empty()) {
    std::vector<std::vector<std::string>> lines;
    for (const auto& [name, text] : report.metadata) lines.push_back({printable(name, 200), text});
    out += "metadata:\n" + format_columns(lines);
  }
  return out;
}

std::string report_json(const InspectReport& report) {
  Total total;
  Json tensors = Json::array();
  for (const TensorInfo& tensor : report.tensors) {
    total.add(tensor);
    Json& row = tensors.add(Json::object());
    row.set("name", Json::string(tensor.name));
    row.set("group", Json::string(tensor.group));
    row.set("dtype", Json::string(dtype_name(tensor.dtype)));
    Json& shape = row.set("shape", Json::array());
    for (const int64_t size : tensor.shape) shape.add(Json::number(size));
    row.set("num_elements", Json::number(static_cast<int64_t>(tensor.num_elements)));
    row.set("size_bytes", Json::number(static_cast<int64_t>(tensor.size_bytes)));
  }
  Json root = Json::object();
  root.set("path", Json::string(report.path));
  root.set("format", Json::string(report.format));
  root.set("file_bytes", Json::number(static_cast<int64_t>(report.file_bytes)));
  root.set("num_tensors", Json::number(static_cast<int64_t>(total.num_tensors)));
  root.set("num_parameters", Json::number(static_cast<int64_t>(total.num_elements)));
  root.set("size_bytes", Json::number(static_cast<int64_t>(total.size_bytes)));
  root.set("tensors", std::move(tensors));
  Json& metadata = root.set("metadata", Json::object());
  for (const auto& [name, text] : report.metadata) metadata.set(name, Json::string(text));
  return dump_json(root, 2) + "\n";
}

}  // namespace vgen::io
