#pragma once
// The one error type. Throw it for anything that a user, a file or a peer can cause; assert only
// what a programmer can cause. `catch` stands at borders alone: main, a thread, an HTTP handler.

#include <stdexcept>
#include <string>
#include <string_view>

#include "vgen/core/strings.h"

namespace vgen {

enum class ErrorCode {
  kInvalidArgument,  ///< a command line, config or call asks for what cannot be
  kNotFound,         ///< a file, key or tensor is missing
  kDataCorrupt,      ///< bytes that are not what they claim to be
  kUnavailable,      ///< the machine says no: disk full, no permission, peer gone
  kInternal,         ///< a defect of vgen
};

/// "invalid argument", "not found", ...
std::string_view error_code_name(ErrorCode code);

/// One line for the user: where, what was found, what was expected, what to do.
class Error : public std::exception {
 public:
  Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}

  ErrorCode code() const { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }

  /// Puts "context: " in front of the message. Each layer adds what only it knows.
  void add_context(std::string_view context);

 private:
  ErrorCode code_;
  std::string message_;
};

/// throw_error(ErrorCode::kNotFound, path, ": no such file"): the parts are joined by str_cat.
template <class... Parts>
[[noreturn]] void throw_error(ErrorCode code, const Parts&... parts) {
  throw Error(code, str_cat(parts...));
}

/// Throws unless `condition`. The parts are only joined when it fails.
template <class... Parts>
void require(bool condition, ErrorCode code, const Parts&... parts) {
  if (!condition) throw Error(code, str_cat(parts...));
}

/// "No space left on device": the text of an errno value. Thread-safe.
std::string errno_text(int error_number);

}  // namespace vgen
