#pragma once
// JSON, strict and bounded: files with it come from outside.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vgen::io {

/// A JSON value. Integers keep all 64 bits; object members keep their order.
struct Json {
  enum class Kind { kNull, kBool, kInt, kUnsigned, kFloat, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  int64_t integer = 0;    ///< kInt; kBool: 0 or 1; kUnsigned, above 2^63 - 1: its bits
  double real = 0;        ///< kFloat
  std::string text = {};  ///< kString, UTF-8
  std::vector<Json> items = {};
  std::vector<std::pair<std::string, Json>> members = {};

  static Json null() { return {}; }
  static Json boolean(bool value) { return {.kind = Kind::kBool, .integer = value ? 1 : 0}; }
  static Json number(int64_t value) { return {.kind = Kind::kInt, .integer = value}; }
  static Json unsigned_number(uint64_t value) {
    return {.kind = value >> 63 == 0 ? Kind::kInt : Kind::kUnsigned,
            .integer = static_cast<int64_t>(value)};
  }
  static Json number(double value) { return {.kind = Kind::kFloat, .real = value}; }
  static Json string(std::string_view value) {
    return {.kind = Kind::kString, .text = std::string(value)};
  }
  static Json array() { return {.kind = Kind::kArray}; }
  static Json object() { return {.kind = Kind::kObject}; }

  Json& add(Json item) { return items.emplace_back(std::move(item)); }
  Json& set(std::string_view name, Json value) {
    return members.emplace_back(std::string(name), std::move(value)).second;
  }

  /// Member of an object; null when there is none or this is no object.
  const Json* find(std::string_view name) const;

  // Typed members. A missing one is Error(kDataCorrupt): "missing 'step'"; another kind is too:
  // "'step' is a string, expected an integer". get_float takes an integer as well.
  int64_t get_int(std::string_view name) const;
  double get_float(std::string_view name) const;
  bool get_bool(std::string_view name) const;
  const std::string& get_string(std::string_view name) const;
  const Json& get_array(std::string_view name) const;
  const Json& get_object(std::string_view name) const;
};

/// "an integer", "an object": for messages.
std::string_view json_kind_name(Json::Kind kind);

struct JsonLimits {
  int64_t max_depth = 64;
  int64_t max_nodes = 1'000'000;
  /// Not 0: a long text may have more values than max_nodes, one for so many of its bytes. Memory
  /// is then bounded by the text: a value takes about 100 bytes.
  int64_t bytes_per_node = 0;
};

/// One whole document: RFC 8259, UTF-8, no comments, nothing after it. Refused with
/// Error(kDataCorrupt): duplicate names in an object, integers beyond 64 bits, more than the
/// limits. The messages give the byte; the caller adds the file.
Json parse_json(std::string_view text, const JsonLimits& limits = {});

/// The value as text. indent < 0: one line without spaces; else arrays of scalars stay on a line.
/// Non-finite numbers become null. is_ascii: other characters are escaped, as for Latin-1 readers.
std::string dump_json(const Json& value, int indent = -1, bool is_ascii = false);

}  // namespace vgen::io
