#pragma once
// Logging and progress: lines on stderr (and in a file), rank-aware, and one progress bar that the
// lines do not tear. spdlog stays inside log.cpp.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "vgen/core/strings.h"

namespace vgen {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogConfig {
  LogLevel level = LogLevel::kInfo;  ///< lowest level that is shown
  std::string file;                  ///< also append every line to this file, "" = no file
  int64_t rank = 0;                  ///< ranks above 0 print warnings and errors only, prefixed
  int64_t world_size = 1;
};

/// Replaces the process-wide logger. Before the first call lines of level info go to stderr.
void init_logging(const LogConfig& config);

/// One line. Thread-safe.
void log_message(LogLevel level, std::string_view message);

template <class... Parts>
void log_debug(const Parts&... parts) {
  log_message(LogLevel::kDebug, str_cat(parts...));
}
template <class... Parts>
void log_info(const Parts&... parts) {
  log_message(LogLevel::kInfo, str_cat(parts...));
}
template <class... Parts>
void log_warning(const Parts&... parts) {
  log_message(LogLevel::kWarning, str_cat(parts...));
}
template <class... Parts>
void log_error(const Parts&... parts) {
  log_message(LogLevel::kError, str_cat(parts...));
}

/// Progress of long work. On a terminal a bar that redraws in place, at most ten times a second;
/// otherwise a plain log line at most every `line_interval_seconds`. Owned by one thread.
class Progress {
 public:
  struct Options {
    std::string label;                  ///< "train", "index"
    std::string unit = "it";            ///< "images", "steps"
    int64_t total = 0;                  ///< 0 = unknown: no ETA
    int64_t start = 0;                  ///< already done, e.g. after a resume
    double line_interval_seconds = 10;  ///< when not on a terminal; 0 = every update
  };
  explicit Progress(Options options);
  ~Progress();  ///< clears the bar; prints nothing
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` counts from 0 to total. `fields` is appended: "loss 0.123 | 41.0 images/s".
  void update(int64_t done, std::string_view fields = {});
  /// Removes the bar and logs a last line "label: 100/100 images in 12.3s | fields".
  void finish(std::string_view fields = {});

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace vgen
