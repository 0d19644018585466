#include "vgen/io/state_dict.h"

#include <algorithm>
#include <filesystem>
#include <unordered_set>

#include "vgen/core/log.h"
#include "vgen/io/detail/sniff.h"
#include "vgen/io/npy.h"
#include "vgen/io/shards.h"
#include "vgen/io/torch_file.h"

namespace vgen::io {
namespace {

namespace fs = std::filesystem;

// Where official checkpoints keep their weights, in the order in which "auto" tries them.
constexpr std::string_view kAutoKeys[] = {
    "model", "module", "state_dict", "ema", "trainer.var_wo_ddp", "trainer.vae_local"};

bool holds_tensors(const Value& value) {
  return value.has_entries() && std::ranges::any_of(value.entries(), [](const auto& entry) {
           return entry.second->kind == Value::Kind::kTensor;
         });
}

// The value at "a.b": a key with a dot in it wins over descending.
const Value* find_path(const Value& value, std::string_view path) {
  if (const Value* direct = value.find(path)) return direct;
  for (size_t dot = path.find('.'); dot != std::string_view::npos; dot = path.find('.', dot + 1)) {
    const Value* next = value.find(path.substr(0, dot));
    if (next == nullptr) continue;
    if (const Value* found = find_path(*next, path.substr(dot + 1))) return found;
  }
  return nullptr;
}

struct Choice {
  const Value* value = nullptr;
  std::string key;
};

Choice choose_one(const Value& root, const std::string& key) {
  if (key == "all") return {&root, ""};
  if (key != "auto") return {find_path(root, key), key};
  for (const std::string_view candidate : kAutoKeys) {
    const Value* found = find_path(root, candidate);
    if (found != nullptr && holds_tensors(*found)) return {found, std::string(candidate)};
  }
  return {holds_tensors(root) ? &root : nullptr, ""};
}

// "model (a dict of 12), steps (7)": what there is to choose from.
std::string list_entries(const Value& root) {
  if (!root.has_entries()) return str_cat("holds ", format_value(root));
  std::string out = "holds ";
  size_t shown = 0;
  for (const auto& [key, value] : root.entries()) {
    if (shown > 0) out += ", ";
    if (++shown > 12) return str_cat(out, "... (", root.entries().size(), " entries)");
    out += str_cat(format_value(*key), " (", format_value(*value), ")");
  }
  return shown == 0 ? "holds nothing" : out;
}

Choice choose(const Value& root, const std::string& key) {
  for (const std::string& part : split(key, ',')) {
    const Choice choice = choose_one(root, part);
    if (choice.value != nullptr) return choice;
  }
  const std::string wanted =
      key == "auto" ? "no dict of tensors under model, module, state_dict, ema or at its root"
                    : str_cat("no key '", printable(key), "'");
  throw_error(ErrorCode::kNotFound, wanted, "; it ", list_entries(root));
}

// Scalars in the entries of the file's dict that hold no tensors: steps, training arguments.
void add_scalars_beside(const TorchFile& file, Metadata& metadata) {
  const auto leaves = file.flatten(file.root());
  const auto entry_of = [](const TorchFile::Leaf& leaf) {
    return std::string_view(leaf.name).substr(0, leaf.name.find('.'));
  };
  std::unordered_set<std::string_view> with_tensors;
  for (const TorchFile::Leaf& leaf : leaves) {
    if (leaf.value->kind == Value::Kind::kTensor) with_tensors.insert(entry_of(leaf));
  }
  for (const TorchFile::Leaf& leaf : leaves) {
    if (!with_tensors.contains(entry_of(leaf)))
      metadata.emplace(leaf.name, format_value(*leaf.value));
  }
}

StateDict from_torch(const FileBytes& bytes, const std::string& key) {
  const TorchFile file(bytes);
  const Choice choice = choose(file.root(), key);
  StateDict result{.tensors = {}, .metadata = {}, .key = choice.key, .source = bytes.name};
  // Copies of views are bounded each; a hostile file could ask for many of them.
  uint64_t copied = 0;
  const uint64_t max_copied = 4 * std::max<uint64_t>(bytes.bytes.size(), uint64_t{64} << 20);
  for (const TorchFile::Leaf& leaf : file.flatten(*choice.value)) {
    if (leaf.value->kind != Value::Kind::kTensor) {
      result.metadata.emplace(leaf.name, format_value(*leaf.value));
      continue;
    }
    Array array = file.read(leaf.value->tensor());
    if (array.owner != bytes.owner) copied += array.data.size();
    require(copied <= max_copied, ErrorCode::kDataCorrupt, "views of shared storages take ",
            format_bytes(copied), ", far more than the file");
    result.tensors.push_back({leaf.name, std::move(array)});
  }
  if (!choice.key.empty()) add_scalars_beside(file, result.metadata);
  require(!result.tensors.empty(), ErrorCode::kNotFound, "no tensors under '",
          printable(choice.key), "'; it ", list_entries(file.root()));
  return result;
}

StateDict from_npz(const FileBytes& bytes) {
  const NpzFile file(bytes);
  StateDict result{.tensors = {}, .metadata = {}, .key = "", .source = bytes.name};
  for (const std::string& name : file.names()) {
    result.tensors.push_back({name, file.read(name)});
  }
  return result;
}

// Of rows that are parts of tensors, the tensors: from this file and those beside it.
StateDict from_parts(const fs::path& path) {
  const auto name = parse_shard_name(path.filename().string());
  require(name.has_value(), ErrorCode::kDataCorrupt, "holds parts of tensors ('", kPartsKey,
          "'), but is not named as one of several files, such as ",
          shard_name("model.safetensors", 1, 2));
  SlicedFile file((path.parent_path() / name->file).string());
  return read_whole(file);
}

StateDict from_safetensors(const FileBytes& bytes) {
  Safetensors file = parse_safetensors(bytes);
  if (file.metadata.contains(std::string(kPartsKey))) return from_parts(bytes.name);
  return {.tensors = std::move(file.tensors),
          .metadata = std::move(file.metadata),
          .key = "",
          .source = bytes.name};
}

StateDict load_file(const FileBytes& bytes, const std::string& key);

// Each shard once, in the order of their names; what the index does not list is left out.
StateDict from_shards(const FileBytes& index) {
  StateDict result{.tensors = {}, .metadata = {}, .key = "", .source = index.name};
  const fs::path folder = fs::path(index.name).parent_path();
  for (const auto& [shard, names] : parse_shard_index(index)) {
    const std::string path = (folder / shard).string();
    const FileBytes bytes = map_file(path);
    require(detail::sniff(bytes.bytes) != detail::FileKind::kShardIndex, ErrorCode::kDataCorrupt,
            path, ": is an index itself, expected tensors");
    StateDict part = load_file(bytes, "auto");
    std::unordered_set<std::string_view> wanted(names.begin(), names.end());
    for (NamedArray& tensor : part.tensors) {
      if (wanted.erase(tensor.name) > 0) result.tensors.push_back(std::move(tensor));
    }
    require(wanted.empty(), ErrorCode::kDataCorrupt, path, ": lacks tensor '",
            wanted.empty() ? "" : printable(*wanted.begin()), "', which ", index.name,
            " says is in it");
    result.metadata.merge(part.metadata);
    result.mappings.push_back(bytes.bytes);
  }
  return result;
}

StateDict load_file(const FileBytes& bytes, const std::string& key) {
  const detail::FileKind kind = detail::sniff(bytes.bytes);
  if (kind == detail::FileKind::kTorchZip || kind == detail::FileKind::kTorchLegacy) {
    return from_torch(bytes, key);
  }
  // The others do not nest: the default must be among the choices.
  const auto choices = split(key, ',');
  const bool is_default = std::ranges::any_of(
      choices, [](const std::string& choice) { return choice == "auto" || choice == "all"; });
  require(is_default, ErrorCode::kNotFound, "no key '", printable(key),
          "': files of this format hold one flat list of tensors");
  switch (kind) {
    case detail::FileKind::kSafetensors:
      return from_safetensors(bytes);
    case detail::FileKind::kShardIndex:
      return from_shards(bytes);
    case detail::FileKind::kNpz:
      return from_npz(bytes);
    default:
      throw_error(ErrorCode::kInvalidArgument, "holds one array without a name, expected weights");
  }
}

// The file of a folder that a key means.
std::string choose_in_folder(const fs::path& folder, const std::string& key) {
  std::vector<std::string> tried;
  for (const std::string& part : split(key, ',')) {
    const std::string stem = part == "auto" || part == "all" ? "model" : part;
    for (const std::string& name :
         {stem + ".safetensors.index.json", stem + ".safetensors",
          std::string("pytorch_model.bin.index.json"), std::string("pytorch_model.bin")}) {
      if (stem != "model" && !name.starts_with(stem)) continue;
      if (has_tensor_file((folder / name).string())) return (folder / name).string();
      tried.push_back(name);
    }
  }
  throw_error(ErrorCode::kNotFound, folder.string(), ": a folder without weights; looked for ",
              join(tried, ", "));
}

}  // namespace

const Array* StateDict::find(std::string_view name) const {
  const auto found = std::ranges::find(tensors, name, &NamedArray::name);
  return found == tensors.end() ? nullptr : &found->array;
}

StateDict read_whole(SlicedFile& file) {
  StateDict state{.tensors = {}, .metadata = file.metadata(), .key = "", .source = file.path()};
  for (const SlicedTensor& tensor : file.tensors()) {
    state.tensors.push_back({tensor.name, file.whole(tensor)});
  }
  for (const FileBytes& bytes : file.opened()) {
    const bool is_held = std::ranges::any_of(
        state.tensors, [&](const NamedArray& tensor) { return tensor.array.owner == bytes.owner; });
    if (is_held) state.mappings.push_back(bytes.bytes);  // else it is unmapped on return
  }
  return state;
}

StateDict load_state_dict(const std::string& path, const std::string& key) {
  if (fs::is_directory(path)) return load_state_dict(choose_in_folder(path, key), "auto");
  if (!fs::exists(path) && has_tensor_file(path)) {
    SlicedFile file(path);
    return read_whole(file);
  }
  const FileBytes bytes = map_file(path);
  try {
    StateDict state = load_file(bytes, key);
    if (state.source == path) state.mappings.push_back(bytes.bytes);  // else it was one shard
    return state;
  } catch (Error& error) {
    if (!std::string_view(error.what()).starts_with(path)) error.add_context(path);
    throw;
  }
}

}  // namespace vgen::io
