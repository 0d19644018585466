#include "vgen/checkpoint/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/io/atomic_file.h"
#include "vgen/io/json.h"

namespace vgen::checkpoint {

namespace fs = std::filesystem;

namespace {

constexpr const char* kLockName = ".lock";

void make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  require(!error && fs::is_directory(path), ErrorCode::kUnavailable, path,
          ": cannot be made as a folder: ", error ? error.message() : "a file is there");
}

bool holds_anything(const std::string& path) {
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.path().filename() != kLockName) return true;
  }
  return false;
}

}  // namespace

bool is_run_folder(const std::string& path) {
  return fs::exists(path + "/config.yaml") || fs::is_directory(path + "/checkpoints");
}

RunFolder::RunFolder(std::string path, bool may_exist) : path_(std::move(path)) {
  require(!path_.empty(), ErrorCode::kInvalidArgument,
          "no run folder is given; name one with --run-dir");
  make_folder(path_);
  has_run_ = is_run_folder(path_);
  require(has_run_ || !holds_anything(path_), ErrorCode::kInvalidArgument, path_,
          ": holds other files than those of a run; name an empty or new folder with --run-dir");
  require(may_exist || !has_run_, ErrorCode::kInvalidArgument, path_,
          ": already holds a run; continue it with --resume auto, or name another folder with "
          "--run-dir");
  lock();
}

RunFolder::~RunFolder() {
  if (lock_fd_ >= 0) ::close(lock_fd_);  // the lock goes with it
}

void RunFolder::lock() {
  const std::string path = file(kLockName);
  lock_fd_ = ::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
  require(lock_fd_ >= 0, ErrorCode::kUnavailable, path_,
          ": cannot be written to: ", errno_text(errno));
  require(::flock(lock_fd_, LOCK_EX | LOCK_NB) == 0, ErrorCode::kUnavailable, path_,
          ": another process is training in this folder; stop it, or name another folder with "
          "--run-dir");
}

std::string RunFolder::subfolder(const std::string& name) const {
  make_folder(file(name));
  return file(name);
}

void trim_metrics(const std::string& path, int64_t step) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return;
  std::string kept, line;
  int64_t num_dropped = 0;
  while (std::getline(file, line)) {
    bool is_kept = false;
    try {
      is_kept = io::parse_json(line).get_int("step") <= step;
    } catch (const Error&) {
      // The last line of a killed process may be cut short.
    }
    if (is_kept) {
      kept += line + "\n";
    } else {
      ++num_dropped;
    }
  }
  if (num_dropped == 0) return;
  io::write_file_atomically(path, kept);
  log_info(path, ": removed ", num_dropped, " lines after step ", step);
}

}  // namespace vgen::checkpoint
