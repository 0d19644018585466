#pragma once
// Text helpers that the standard library lacks.

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace vgen {

/// Shortest text that reads back as the same double: "0.1", "1e-04", "3". Independent of locale.
std::string format_double(double value);

namespace internal {
inline void append_part(std::string& out, std::string_view part) { out.append(part); }
inline void append_part(std::string& out, const char* part) { out.append(part); }
inline void append_part(std::string& out, const std::string& part) { out.append(part); }
inline void append_part(std::string& out, char part) { out.push_back(part); }
inline void append_part(std::string& out, bool part) { out.append(part ? "true" : "false"); }
template <class Number>
requires(std::is_arithmetic_v<Number>) void append_part(std::string& out, Number part) {
  if constexpr (std::is_integral_v<Number>) {
    char digits[24];
    out.append(digits, std::to_chars(digits, digits + sizeof(digits), part).ptr);
  } else {
    out.append(format_double(part));
  }
}
}  // namespace internal

/// str_cat("entry ", 7, " of ", path): joins text, numbers and booleans.
template <class... Parts>
std::string str_cat(const Parts&... parts) {
  std::string out;
  (internal::append_part(out, parts), ...);
  return out;
}

/// join({"a", "b"}, ", ") is "a, b".
std::string join(const std::vector<std::string>& parts, std::string_view separator);

/// split("a,b", ',') is {"a", "b"}; an empty text has no parts.
std::vector<std::string> split(std::string_view text, char separator);

/// "[2, 3, 64, 64]".
std::string format_shape(const std::vector<int64_t>& shape);

/// printf-style fixed point: format_fixed(1.5, 2) is "1.50".
std::string format_fixed(double value, int decimals);

/// "1.5 GiB", "12 KiB", "7 B".
std::string format_bytes(uint64_t size_bytes);

/// "2h 03m", "4m 05s", "12.3s".
std::string format_seconds(double seconds);

/// "71,883,403".
std::string format_count(uint64_t count);

std::string to_lower(std::string_view text);

/// Whole text as a number; no value when it is anything else.
bool parse_int(std::string_view text, int64_t& value);
bool parse_double(std::string_view text, double& value);

/// The candidate most similar to `name`, or "" when none is near (edit distance above a third of
/// the length). For "unknown key 'n_layr', is it 'n_layer'?".
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

/// Printable, one line, at most `max_size` bytes: what to show of a name that came out of a file.
std::string printable(std::string_view text, size_t max_size = 80);

}  // namespace vgen
