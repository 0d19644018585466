#include "vgen/checkpoint/store.h"

#include <torch/torch.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <filesystem>
#include <optional>
#include <random>
#include <set>
#include <system_error>
#include <thread>

#include "vgen/checkpoint/detail/host_copy.h"
#include "vgen/checkpoint/detail/index.h"
#include "vgen/checkpoint/detail/write_plan.h"
#include "vgen/checkpoint/run_folder.h"
#include "vgen/core/log.h"
#include "vgen/dist/together.h"
#include "vgen/io/atomic_file.h"
#include "vgen/io/mapped_file.h"
#include "vgen/io/safetensors.h"

namespace vgen::checkpoint {

namespace fs = std::filesystem;
using io::Json;

namespace {

constexpr std::string_view kPrefix = "step_";
constexpr std::string_view kNotShared =
    ": is not there as rank 0 has it; give all ranks one --run-dir, on a file system that all "
    "hosts share";
constexpr std::string_view kNoCheckpoint = ": holds no valid checkpoint";
constexpr std::string_view kGetOne = "; let the run write one, or name a file of weights";

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

CheckpointInfo inspect(const std::string& path, bool with_checksum) {
  CheckpointInfo info;
  info.path = path;
  info.step = step_of(base_name(path)).value_or(0);
  try {
    const detail::Index index = detail::read_index(path);
    info.step = index.step;
    info.metrics = index.metrics;
    info.checksum = index.checksum;
    for (const auto& [name, entry] : index.files.members) {
      detail::check_file(path, name, entry, with_checksum);
    }
    detail::check_unlisted(path, index);
  } catch (const Error& error) {
    info.problem = error.what();
  }
  return info;
}

/// False where nothing is. Throws Error(kUnavailable) where the system does not tell.
bool is_folder(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  require(!error || status.type() == fs::file_type::not_found, ErrorCode::kUnavailable, path,
          ": cannot be looked at: ", error.message());
  return fs::is_directory(status);
}

/// An index is written last: with one, a checkpoint was whole once.
bool has_index(const std::string& path) {
  std::error_code error;
  return fs::exists(path + "/index.json", error);
}

std::vector<CheckpointInfo> list_folder(const std::string& folder, bool with_checksum) {
  std::vector<std::pair<int64_t, std::string>> found;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const auto step = step_of(entry->path().filename().string());
    if (step && is_folder(entry->path().string())) {
      found.emplace_back(*step, entry->path().string());
    }
  }
  require(!error, ErrorCode::kUnavailable, folder, ": cannot be listed: ", error.message());
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

/// Calls `look` until it throws no more, for a while, then lets its error through.
void look_patiently(const std::string& folder, int64_t patience_ms,
                    const std::function<void()>& look) {
  const auto now = std::chrono::steady_clock::now;
  const auto end = now() + std::chrono::milliseconds(patience_ms);
  while (true) {
    try {
      return look();
    } catch (const Error&) {
      if (now() >= end) throw;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    // Network file systems ask the server again for a folder that is opened.
    std::error_code error;
    const fs::directory_iterator opened(folder, error);
  }
}

/// An empty file of a random name, as long as this lives.
class Token {
 public:
  explicit Token(const std::string& folder) {
    std::random_device random;
    name_ = str_cat(".shared-", random(), "-", random());
    path_ = str_cat(folder, "/", name_);
    io::write_file_atomically(path_, "");
  }
  ~Token() {
    std::error_code error;
    fs::remove(path_, error);
  }
  Token(const Token&) = delete;
  Token& operator=(const Token&) = delete;

  const std::string& name() const { return name_; }

 private:
  std::string name_, path_;
};

/// Nothing is listed for a rank's word alone: the checkpoints before it may be removed for this
/// one.
void check_written(const std::string& path, const detail::Index& index, int64_t patience_ms) {
  try {
    look_patiently(path, patience_ms, [&] {
      for (const auto& [name, entry] : index.files.members) {
        detail::check_file(path, name, entry, /*with_checksum=*/false);
      }
    });
  } catch (const Error& error) {
    throw_error(ErrorCode::kUnavailable, path,
                ": rank 0 does not see what was written: ", error.what(),
                "; put the run folder on a file system that all hosts share");
  }
}

/// What rank 0 writes all have to see: found out before there is a step to lose. Collective.
void check_shared(const std::string& folder, dist::Group& group, int64_t patience_ms) {
  if (group.size() == 1) return;
  std::optional<Token> token;
  const auto names = dist::together(group, [&] {
    if (group.rank() != 0) return std::string();
    token.emplace(folder);
    return token->name();
  });
  dist::together(group, [&] {
    look_patiently(folder, patience_ms, [&] {
      std::error_code error;
      require(fs::exists(str_cat(folder, "/", names[0]), error), ErrorCode::kUnavailable, folder,
              kNotShared);
    });
    return std::string();
  });
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
  require(is_folder(path), ErrorCode::kNotFound, path,
          ": no such folder; expected a run folder or a checkpoint folder");
  const bool has_store = is_folder(path + "/checkpoints");
  const bool is_run = has_store || is_run_folder(path);
  const std::string folder = has_store ? path + "/checkpoints" : path;
  const auto all = list_folder(folder, /*with_checksum=*/false);
  if (!is_run && all.empty()) {
    CheckpointInfo info = check_checkpoint(path);
    require(info.problem.empty(), ErrorCode::kDataCorrupt, path,
            ": not a valid checkpoint: ", info.problem);
    return info;
  }
  std::vector<std::string> problems;
  bool was_whole = false;
  for (const CheckpointInfo& candidate : all) {  // newest first; checksums only as far as needed
    CheckpointInfo info = candidate.problem.empty() ? check_checkpoint(candidate.path) : candidate;
    if (info.problem.empty()) return info;
    log_warning(info.path, ": not a valid checkpoint, passed over: ", info.problem);
    problems.push_back(str_cat(base_name(info.path), ": ", info.problem));
    was_whole |= has_index(info.path);
  }
  require(!was_whole, ErrorCode::kDataCorrupt, path, kNoCheckpoint, ": ", join(problems, "; "),
          "; bring one of them back, or move ", folder, " away to start over");
  throw_error(ErrorCode::kNotFound, path, kNoCheckpoint,
              std::string_view(all.empty() ? "" : " (the log tells why of each)"), kGetOne);
}

std::string newest_checkpoint(const std::string& path) {
  if (has_index(path)) return path;
  require(is_folder(path), ErrorCode::kNotFound, path,
          ": no such folder; expected a run folder or a checkpoint folder");
  const std::string folder = is_folder(path + "/checkpoints") ? path + "/checkpoints" : path;
  for (const CheckpointInfo& info : list_folder(folder, /*with_checksum=*/false)) {
    if (has_index(info.path)) return info.path;
  }
  throw_error(ErrorCode::kNotFound, path, kNoCheckpoint, kGetOne);
}

CheckpointInfo find_checkpoint(const std::string& path, dist::Group& group) {
  CheckpointInfo info;
  const auto found = dist::together(group, [&] {  // "<checksum> <where in path>"
    if (group.rank() != 0) return std::string();
    info = find_checkpoint(path);
    return str_cat(info.checksum, " ", fs::path(info.path).lexically_relative(path).string());
  });
  dist::together(group, [&] {
    if (group.rank() == 0) return std::string();
    const size_t space = found[0].find(' ');
    const std::string inside = found[0].substr(space + 1);
    info.path = inside == "." ? path : (fs::path(path) / inside).string();
    require(fs::is_directory(info.path), ErrorCode::kUnavailable, info.path, kNotShared);
    const detail::Index index = detail::read_index(info.path);
    require(index.checksum == found[0].substr(0, space), ErrorCode::kUnavailable, info.path,
            "/index.json", kNotShared);
    info.step = index.step;
    info.metrics = index.metrics;
    info.checksum = index.checksum;
    return std::string();
  });
  return info;
}

bool is_checkpoint_path(const std::string& path) {
  if (!fs::is_directory(path)) return false;
  return has_index(path) || is_run_folder(path) ||
         !list_folder(path, /*with_checksum=*/false).empty();
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

/// A checkpoint under way.
struct CheckpointStore::Writing {
  int64_t step = 0;
  std::string path;
  bool is_new = true;  ///< false: a valid one of this step is there
  std::map<std::string, double> metrics;
  io::Json state;
  detail::WritePlan plan;
  Json entries = Json::object();  ///< of the index, for the files that this rank has written
  std::exception_ptr error;       ///< of this rank
  std::atomic<bool> is_done = false;
  std::thread thread;

  ~Writing() {
    if (thread.joinable()) thread.join();
  }
};

CheckpointStore::CheckpointStore(std::string folder, CheckpointConfig config, dist::Group* group,
                                 int64_t patience_ms)
    : folder_(std::move(folder)),
      config_(std::move(config)),
      patience_ms_(patience_ms),
      group_(group) {
  if (group_ == nullptr) {
    alone_ = dist::Group::alone();
    group_ = alone_.get();
  }
  dist::together(*group_, [&] {
    std::error_code error;
    if (group_->rank() == 0) fs::create_directories(folder_, error);
    require(!error, ErrorCode::kUnavailable, folder_, ": cannot be made: ", error.message());
    return std::string();
  });
  check_shared(folder_, *group_, patience_ms_);
}

CheckpointStore::~CheckpointStore() = default;

std::vector<CheckpointInfo> CheckpointStore::list() const {
  return list_folder(folder_, /*with_checksum=*/false);
}

void CheckpointStore::save(const Snapshot& snapshot) {
  finish();
  const std::string path = str_cat(folder_, "/", step_name(snapshot.step));
  try {
    writing_ = begin(snapshot, path);
  } catch (Error& error) {
    give_up(snapshot.step, path, error);
    throw;
  }
  Writing& writing = *writing_;
  if (!config_.async_save) {
    write_own(writing);
    return finish();
  }
  try {
    if (!host_copy_) host_copy_ = std::make_unique<detail::HostCopy>();
    writing.plan.own = host_copy_->copy(writing.plan.own);
    try {
      writing.thread = std::thread([this, &writing] { write_own(writing); });
    } catch (const std::system_error& error) {
      log_warning("the system gives no thread to save step ", writing.step, " in the background (",
                  error.code().message(),
                  "), training waits for it; raise the limits of processes and memory (ulimit -u "
                  "and -v)");
      write_own(writing);
    }
  } catch (...) {
    writing.error = std::current_exception();
    writing.is_done = true;
  }
}

std::unique_ptr<CheckpointStore::Writing> CheckpointStore::begin(const Snapshot& snapshot,
                                                                 const std::string& path) {
  auto writing = std::make_unique<Writing>();
  writing->step = snapshot.step;
  writing->path = path;
  const std::string outline = detail::outline(snapshot);
  const auto answers = dist::together(*group_, [&] {
    if (group_->rank() != 0) return outline;
    if (fs::exists(path) && check_checkpoint(path).problem.empty()) return outline + " is there";
    remove_folder(path);
    std::error_code error;
    fs::create_directory(path, error);
    require(!error, ErrorCode::kUnavailable, path, ": cannot be made: ", error.message());
    return outline;
  });
  for (size_t rank = 1; rank < answers.size(); ++rank) {
    require(answers[0].starts_with(answers[rank]), ErrorCode::kInternal, "rank ", rank,
            " has other tensors to save than rank 0");
  }
  writing->is_new = answers[0] == outline;
  if (!writing->is_new) return writing;
  writing->metrics = snapshot.metrics;
  writing->state = snapshot.state;
  writing->plan = detail::plan_writing(snapshot, *group_);
  return writing;
}

void CheckpointStore::write_own(Writing& writing) {
  const std::string& path = writing.path;
  try {
    require(writing.plan.own.empty() || fs::is_directory(path), ErrorCode::kUnavailable, path,
            kNotShared);
    for (const TensorFile& file : writing.plan.own) {
      announce(file.name);
      const std::string name = str_cat(path, "/", file.name);
      io::write_safetensors(name, as_arrays(file.tensors), file.metadata);
      writing.entries.set(file.name, detail::describe_file(name));
    }
    if (group_->rank() == 0 && !writing.plan.is_sharded()) {
      complete(writing, {io::dump_json(writing.entries)});
    }
  } catch (...) {
    writing.error = std::current_exception();
  }
  writing.is_done = true;
}

void CheckpointStore::complete(const Writing& writing, const std::vector<std::string>& entries) {
  const std::string& path = writing.path;
  if (writing.is_new) {
    detail::Index index{.step = writing.step,
                        .metrics = writing.metrics,
                        .files = Json::object(),
                        .tensors = writing.plan.tensors};
    for (const std::string& of_rank : entries) {
      for (auto& [name, entry] : io::parse_json(of_rank).members) {
        index.files.set(name, std::move(entry));
      }
    }
    announce("state.json");
    io::write_file_atomically(path + "/state.json", io::dump_json(writing.state, 1) + "\n");
    index.files.set("state.json", detail::describe_file(path + "/state.json"));
    check_written(path, index, patience_ms_);
    announce("index.json");
    detail::write_index(path, index);
  }
  announce("latest");
  io::write_file_atomically(folder_ + "/latest", step_name(writing.step) + "\n");
  announce("rotate");
  rotate();
}

void CheckpointStore::poll() {
  if (!writing_) return;
  const at::Tensor num_busy = at::full({1}, writing_->is_done ? 0 : 1, at::kLong);
  group_->all_reduce_sum(num_busy);
  if (num_busy.item<int64_t>() == 0) finish();
}

void CheckpointStore::finish() {
  if (!writing_) return;
  const std::unique_ptr<Writing> writing = std::move(writing_);
  if (writing->thread.joinable()) writing->thread.join();
  try {
    const auto entries = dist::together(*group_, [&] {
      if (writing->error) std::rethrow_exception(writing->error);
      return io::dump_json(writing->entries);
    });
    if (!writing->plan.is_sharded()) return;
    dist::together(*group_, [&] {
      if (group_->rank() == 0) complete(*writing, entries);
      return std::string();
    });
  } catch (Error& error) {
    give_up(writing->step, writing->path, error);
    throw;
  }
}

void CheckpointStore::give_up(int64_t step, const std::string& path, Error& error) {
  const bool is_saved = has_index(path);
  if (!is_saved && group_->rank() == 0) remove_folder(path);
  error.add_context(
      str_cat("checkpoint of step ", step, is_saved ? " saved, but not checked in" : " not saved"));
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
  const double sign = config_.best_mode == "min" ? 1 : -1;
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
