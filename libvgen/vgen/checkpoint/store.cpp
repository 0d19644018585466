#include "vgen/checkpoint/store.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <set>

#include "vgen/core/log.h"
#include "vgen/io/atomic_file.h"
#include "vgen/io/crc32c.h"
#include "vgen/io/mapped_file.h"
#include "vgen/io/safetensors.h"

namespace vgen::checkpoint {

namespace fs = std::filesystem;
using io::Json;

namespace {

constexpr std::string_view kFormat = "vgen-checkpoint-1";
constexpr std::string_view kPrefix = "step_";

std::optional<int64_t> step_of(const std::string& folder_name) {
  int64_t step = 0;
  if (!folder_name.starts_with(kPrefix)) return std::nullopt;
  if (!parse_int(std::string_view(folder_name).substr(kPrefix.size()), step) || step < 0) {
    return std::nullopt;
  }
  return step;
}

// The last part of a path, "runs/x/" has "x".
std::string base_name(const std::string& path) {
  fs::path p(path);
  return (p.has_filename() ? p : p.parent_path()).filename().string();
}

void check_file(const std::string& folder, const std::string& name, const Json& entry,
                bool with_checksum) {
  const std::string path = str_cat(folder, "/", name);
  require(name.find('/') == std::string::npos && name != "..", ErrorCode::kDataCorrupt,
          "index.json names '", printable(name), "', which is no plain file name");
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

CheckpointInfo inspect(const std::string& path, bool with_checksum) {
  CheckpointInfo info;
  info.path = path;
  info.step = step_of(base_name(path)).value_or(0);
  try {
    const std::string index_path = path + "/index.json";
    require(fs::exists(index_path), ErrorCode::kDataCorrupt,
            "no index.json: the writing was not finished");
    const Json index = io::parse_json(io::read_text_file(index_path));
    require(index.get_string("format") == kFormat, ErrorCode::kDataCorrupt,
            "index.json has the format '", printable(index.get_string("format")), "', expected '",
            kFormat, "'");
    info.step = index.get_int("step");
    for (const auto& [name, entry] : index.get_object("files").members) {
      check_file(path, name, entry, with_checksum);
    }
    for (const auto& [name, value] : index.get_object("metrics").members) {
      info.metrics[name] = index.get_object("metrics").get_float(name);
    }
  } catch (const Error& error) {
    info.problem = error.what();
  }
  return info;
}

std::vector<CheckpointInfo> list_folder(const std::string& folder, bool with_checksum) {
  std::vector<std::pair<int64_t, std::string>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const auto step = step_of(entry.path().filename().string());
    if (step && entry.is_directory(error)) found.emplace_back(*step, entry.path().string());
  }
  std::ranges::sort(found, std::greater<>());
  std::vector<CheckpointInfo> list;
  for (const auto& [step, path] : found) list.push_back(inspect(path, with_checksum));
  return list;
}

// The index goes first: what is left by a kill in the middle is no checkpoint.
void remove_folder(const std::string& path) {
  std::error_code error;
  fs::remove(path + "/index.json", error);
  fs::remove_all(path, error);
  if (error) log_warning(path, ": cannot be removed: ", error.message());
}

}  // namespace

std::string step_name(int64_t step) {
  const std::string digits = std::to_string(step);
  return str_cat(kPrefix, std::string(digits.size() < 7 ? 7 - digits.size() : 0, '0'), digits);
}

CheckpointInfo check_checkpoint(const std::string& path) {
  return inspect(path, /*with_checksum=*/true);
}

CheckpointInfo find_checkpoint(const std::string& path) {
  require(fs::is_directory(path), ErrorCode::kNotFound, path,
          ": no such folder; expected a run folder or a checkpoint folder");
  const bool is_run = fs::is_directory(path + "/checkpoints");
  const std::string folder = is_run ? path + "/checkpoints" : path;
  const auto all = list_folder(folder, /*with_checksum=*/false);
  if (!is_run && all.empty()) {
    CheckpointInfo info = check_checkpoint(path);
    require(info.problem.empty(), ErrorCode::kDataCorrupt, path,
            ": not a valid checkpoint: ", info.problem);
    return info;
  }
  for (const CheckpointInfo& candidate : all) {  // newest first; checksums only as far as needed
    CheckpointInfo info = candidate.problem.empty() ? check_checkpoint(candidate.path) : candidate;
    if (info.problem.empty()) return info;
    log_warning(info.path, ": not a valid checkpoint, passed over: ", info.problem);
  }
  throw_error(
      ErrorCode::kNotFound, path, ": holds no valid checkpoint",
      all.empty() ? std::string_view("") : std::string_view(" (the log tells why of each)"));
}

Json read_state(const CheckpointInfo& checkpoint) {
  const std::string path = checkpoint.path + "/state.json";
  try {
    Json state = io::parse_json(io::read_text_file(path));
    require(state.kind == Json::Kind::kObject, ErrorCode::kDataCorrupt, "expected an object");
    return state;
  } catch (Error& error) {
    error.add_context(path);
    throw;
  }
}

CheckpointStore::CheckpointStore(std::string folder, CheckpointConfig config)
    : folder_(std::move(folder)), config_(std::move(config)) {
  std::error_code error;
  fs::create_directories(folder_, error);
  require(!error, ErrorCode::kUnavailable, folder_, ": cannot be made: ", error.message());
}

std::vector<CheckpointInfo> CheckpointStore::list() const {
  return list_folder(folder_, /*with_checksum=*/false);
}

void CheckpointStore::save(const Snapshot& snapshot) {
  const std::string name = step_name(snapshot.step);
  const std::string path = str_cat(folder_, "/", name);
  if (!fs::exists(path) || !check_checkpoint(path).problem.empty()) {
    remove_folder(path);
    try {
      write_files(snapshot, path);
    } catch (Error& error) {
      remove_folder(path);
      error.add_context(str_cat("checkpoint of step ", snapshot.step, " not saved"));
      throw;
    }
  }
  announce("latest");
  io::write_file_atomically(folder_ + "/latest", name + "\n");
  announce("rotate");
  rotate();
}

void CheckpointStore::write_files(const Snapshot& snapshot, const std::string& path) {
  std::error_code error;
  fs::create_directory(path, error);
  require(!error, ErrorCode::kUnavailable, path, ": cannot be made: ", error.message());
  Json files = Json::object();
  const auto check_in = [&](const std::string& name) {
    const std::string file = str_cat(path, "/", name);
    const io::MappedFile bytes(file);
    Json entry = Json::object();
    entry.set("size_bytes", Json::number(static_cast<int64_t>(bytes.bytes().size())));
    entry.set("crc32c", Json::string(io::crc32c_text(io::crc32c(bytes.bytes()))));
    files.set(name, std::move(entry));
  };
  for (const TensorFile& file : snapshot.files) {
    announce(file.name);
    io::write_safetensors(str_cat(path, "/", file.name), as_arrays(file.tensors), file.metadata);
    check_in(file.name);
  }
  announce("state.json");
  io::write_file_atomically(path + "/state.json", io::dump_json(snapshot.state, 1) + "\n");
  check_in("state.json");

  Json index = Json::object();
  index.set("format", Json::string(kFormat));
  index.set("step", Json::number(snapshot.step));
  Json& metrics = index.set("metrics", Json::object());
  for (const auto& [name, value] : snapshot.metrics) {
    if (std::isfinite(value)) metrics.set(name, Json::number(value));
  }
  index.set("files", std::move(files));
  announce("index.json");
  io::write_file_atomically(path + "/index.json", io::dump_json(index, 1) + "\n");
}

void CheckpointStore::rotate() {
  const auto all = list();
  std::set<std::string> kept;
  std::vector<const CheckpointInfo*> scored;
  size_t num_valid = 0;
  for (const CheckpointInfo& info : all) {  // newest first
    if (!info.problem.empty()) continue;
    ++num_valid;
    const bool is_recent = static_cast<int64_t>(num_valid) <= config_.keep_last;
    if (config_.keep_last == 0 || is_recent) kept.insert(info.path);
    if (info.metrics.contains(config_.best_metric)) scored.push_back(&info);
  }
  const double sign = config_.best_mode == "max" ? -1 : 1;
  std::ranges::stable_sort(scored, {}, [&](const CheckpointInfo* info) {
    return sign * info->metrics.at(config_.best_metric);
  });
  for (size_t i = 0; i < scored.size() && static_cast<int64_t>(i) < config_.keep_best; ++i) {
    kept.insert(scored[i]->path);
  }
  for (const CheckpointInfo& info : all) {
    if (info.problem.empty() && !kept.contains(info.path)) remove_folder(info.path);
  }
}

}  // namespace vgen::checkpoint
