#include "vgen/core/log.h"

#include <spdlog/common.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <utility>
#include <vector>

#include "vgen/core/error.h"

namespace vgen {

namespace {

// The terminal as logging and the progress bar share it: a log line first erases the bar, and
// draws it again below. The one piece of process-wide state, since stderr is one.
class Terminal {
 public:
  static Terminal& instance() {
    static Terminal terminal;
    return terminal;
  }

  bool is_interactive() const { return is_interactive_; }

  void write_line(std::string_view line) {
    const std::lock_guard lock(mutex_);
    erase_bar();
    put(line);
    if (!bar_.empty()) put(bar_);
    std::fflush(stderr);
  }

  void set_bar(std::string bar) {
    const std::lock_guard lock(mutex_);
    erase_bar();
    bar_ = std::move(bar);
    if (!bar_.empty()) put(bar_);
    std::fflush(stderr);
  }

  size_t columns() const {
    winsize size{};
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
    return size.ws_col;
  }

 private:
  Terminal() : is_interactive_(isatty(STDERR_FILENO) == 1) {}

  static void put(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stderr); }
  void erase_bar() {
    if (!bar_.empty()) put("\r\033[K");
  }

  std::mutex mutex_;
  std::string bar_;
  bool is_interactive_;
};

class TerminalSink : public spdlog::sinks::base_sink<std::mutex> {
 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    Terminal::instance().write_line({line.data(), line.size()});
  }
  void flush_() override {}
};

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

std::shared_ptr<spdlog::logger> make_logger(const LogConfig& config) {
  const std::string rank = config.world_size > 1 ? str_cat(" [rank ", config.rank, "]") : "";
  const std::string pattern = str_cat("%Y-%m-%d %H:%M:%S %L", rank, " %v");
  auto terminal = std::make_shared<TerminalSink>();
  if (config.rank > 0) terminal->set_level(spdlog::level::warn);
  std::vector<spdlog::sink_ptr> sinks{terminal};
  if (!config.file.empty()) {
    try {
      sinks.push_back(std::make_shared<spdlog::sinks::basic_file_sink_mt>(config.file));
    } catch (const spdlog::spdlog_ex& error) {
      throw_error(ErrorCode::kUnavailable, config.file,
                  ": cannot open the log file: ", error.what());
    }
  }
  auto logger = std::make_shared<spdlog::logger>("vgen", sinks.begin(), sinks.end());
  logger->set_pattern(pattern);
  logger->set_level(to_spdlog(config.level));
  logger->flush_on(spdlog::level::info);
  return logger;
}

std::mutex logger_mutex;
std::shared_ptr<spdlog::logger> current_logger;

std::shared_ptr<spdlog::logger> logger() {
  const std::lock_guard lock(logger_mutex);
  if (!current_logger) current_logger = make_logger({});
  return current_logger;
}

}  // namespace

void init_logging(const LogConfig& config) {
  auto made = make_logger(config);
  const std::lock_guard lock(logger_mutex);
  current_logger = std::move(made);
}

void log_message(LogLevel level, std::string_view message) {
  logger()->log(to_spdlog(level), spdlog::string_view_t(message.data(), message.size()));
}

using Clock = std::chrono::steady_clock;

struct Progress::Impl {
  Options options;
  Clock::time_point begin = Clock::now();
  Clock::time_point last_shown = begin;
  int64_t done = 0;
  bool was_shown = false;

  double seconds() const { return std::chrono::duration<double>(Clock::now() - begin).count(); }

  std::string counts() const {
    return options.total > 0 ? str_cat(done, "/", options.total, " ", options.unit)
                             : str_cat(done, " ", options.unit);
  }

  std::string eta() const {
    const int64_t here = done - options.start;
    if (options.total <= 0 || here <= 0) return "";
    const double left = seconds() / static_cast<double>(here) *
                        static_cast<double>(std::max<int64_t>(0, options.total - done));
    return str_cat(" | ETA ", format_seconds(left));
  }

  std::string line(std::string_view fields) const {
    std::string text = str_cat(options.label, ": ", counts());
    if (options.total > 0) {
      text += str_cat(
          " ",
          format_fixed(100.0 * static_cast<double>(done) / static_cast<double>(options.total), 0),
          "%");
    }
    if (!fields.empty()) text += str_cat(" | ", fields);
    return text + eta();
  }

  std::string bar(std::string_view fields) const {
    std::string text = line(fields);
    if (options.total > 0) {
      constexpr int64_t kWidth = 20;
      const auto filled =
          static_cast<size_t>(std::clamp<int64_t>(kWidth * done / options.total, 0, kWidth));
      text = str_cat("[", std::string(filled, '#'), std::string(kWidth - filled, '.'), "] ", text);
    }
    const size_t columns = Terminal::instance().columns();
    if (text.size() + 1 > columns) text.resize(columns - 1);
    return text;
  }
};

Progress::Progress(Options options) : impl_(std::make_unique<Impl>()) {
  impl_->options = std::move(options);
  impl_->done = impl_->options.start;
}

Progress::~Progress() {
  if (impl_->was_shown && Terminal::instance().is_interactive()) Terminal::instance().set_bar("");
}

void Progress::update(int64_t done, std::string_view fields) {
  impl_->done = done;
  const auto now = Clock::now();
  const bool is_interactive = Terminal::instance().is_interactive();
  const double interval = is_interactive ? 0.1 : impl_->options.line_interval_seconds;
  const double since = std::chrono::duration<double>(now - impl_->last_shown).count();
  if (impl_->was_shown ? since < interval : false) return;
  impl_->last_shown = now;
  impl_->was_shown = true;
  if (is_interactive) {
    Terminal::instance().set_bar(impl_->bar(fields));
  } else {
    log_info(impl_->line(fields));
  }
}

void Progress::finish(std::string_view fields) {
  if (Terminal::instance().is_interactive()) Terminal::instance().set_bar("");
  std::string text = str_cat(impl_->options.label, ": ", impl_->counts(), " in ",
                             format_seconds(impl_->seconds()));
  if (!fields.empty()) text += str_cat(" | ", fields);
  log_info(text);
}

}  // namespace vgen
