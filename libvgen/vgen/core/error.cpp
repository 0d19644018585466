#include "vgen/core/error.h"

#include <system_error>

namespace vgen {

std::string_view error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid argument";
    case ErrorCode::kNotFound:
      return "not found";
    case ErrorCode::kDataCorrupt:
      return "corrupt data";
    case ErrorCode::kUnavailable:
      return "unavailable";
    case ErrorCode::kInternal:
      return "internal error";
  }
  return "error";
}

void Error::add_context(std::string_view context) { message_.insert(0, str_cat(context, ": ")); }

std::string errno_text(int error_number) { return std::generic_category().message(error_number); }

}  // namespace vgen
