#include "vgen/io/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "vgen/core/error.h"

namespace vgen::io {
namespace {

// Builds a Json from the events of nlohmann's parser, which itself does not recurse.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  Json take() { return std::move(root_); }

  bool null() override { return place(Json::null()) != nullptr; }
  bool boolean(bool value) override { return place(Json::boolean(value)) != nullptr; }
  bool number_integer(int64_t value) override { return place(Json::number(value)) != nullptr; }
  bool number_unsigned(uint64_t value) override {
    return place(Json::unsigned_number(value)) != nullptr;
  }
  bool number_float(double value, const std::string& text) override {
    // Integers beyond 64 bits arrive here too: silently rounding them would lie.
    require(text.find_first_of(".eE") != std::string::npos, ErrorCode::kDataCorrupt,
            "JSON: integer ", printable(text, 40), " does not fit 64 bits");
    return place(Json::number(value)) != nullptr;
  }
  bool string(std::string& value) override { return place(Json::string(value)) != nullptr; }
  bool binary(binary_t&) override { return false; }

  bool start_object(size_t) override {
    open(Json::object());
    names_.emplace_back();
    return true;
  }
  bool key(std::string& name) override {
    require(names_.back().insert(name).second, ErrorCode::kDataCorrupt, "JSON: the name '",
            printable(name), "' occurs twice in one object");
    key_ = std::move(name);
    return true;
  }
  bool end_object() override {
    names_.pop_back();
    open_.pop_back();
    return true;
  }
  bool start_array(size_t) override {
    open(Json::array());
    return true;
  }
  bool end_array() override {
    open_.pop_back();
    return true;
  }
  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::detail::exception&) override {
    throw_error(ErrorCode::kDataCorrupt, "not valid JSON at byte ", position, " near '",
                printable(token, 40), "'");
  }

 private:
  Json* place(Json value) {
    require(++num_nodes_ <= limits_.max_nodes, ErrorCode::kDataCorrupt, "JSON: more than ",
            limits_.max_nodes, " values");
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.kind == Json::Kind::kArray) return &parent.add(std::move(value));
    return &parent.set(key_, std::move(value));
  }
  // Pointers into open_ stay valid: only the innermost container grows.
  void open(Json container) {
    require(static_cast<int64_t>(open_.size()) < limits_.max_depth, ErrorCode::kDataCorrupt,
            "JSON: nested deeper than ", limits_.max_depth, " levels");
    open_.push_back(place(std::move(container)));
  }

  JsonLimits limits_;
  Json root_;
  std::vector<Json*> open_;
  std::vector<std::unordered_set<std::string>> names_;  // of the open objects
  std::string key_;
  int64_t num_nodes_ = 0;
};

// A scalar as nlohmann writes it: escapes, shortest numbers. Text that is not UTF-8 is shown with
// replacement characters, not thrown about.
std::string dump_scalar(const nlohmann::json& value, bool is_ascii = false) {
  return value.dump(-1, ' ', is_ascii, nlohmann::json::error_handler_t::replace);
}

void append_json(const Json& value, int indent, bool is_ascii, int level, std::string& out) {
  const bool is_object = value.kind == Json::Kind::kObject;
  if (!is_object && value.kind != Json::Kind::kArray) {
    switch (value.kind) {
      case Json::Kind::kBool:
        out += value.integer != 0 ? "true" : "false";
        return;
      case Json::Kind::kInt:
        out += std::to_string(value.integer);
        return;
      case Json::Kind::kUnsigned:
        out += std::to_string(static_cast<uint64_t>(value.integer));
        return;
      case Json::Kind::kFloat:
        out += dump_scalar(value.real);
        return;
      case Json::Kind::kString:
        out += dump_scalar(value.text, is_ascii);
        return;
      default:
        out += "null";
        return;
    }
  }
  const size_t count = is_object ? value.members.size() : value.items.size();
  // Shapes and the like stay on one line.
  const bool is_flat = !is_object && std::ranges::all_of(value.items, [](const Json& item) {
    return item.kind != Json::Kind::kObject && item.kind != Json::Kind::kArray;
  });
  const auto new_line = [&](int at_level) {
    if (indent < 0 || count == 0 || is_flat) return;
    out.push_back('\n');
    out.append(static_cast<size_t>(indent * at_level), ' ');
  };
  out.push_back(is_object ? '{' : '[');
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) out += is_flat && indent >= 0 ? ", " : ",";
    new_line(level + 1);
    if (is_object) {
      out += dump_scalar(value.members[i].first, is_ascii);
      out += indent < 0 ? ":" : ": ";
    }
    append_json(is_object ? value.members[i].second : value.items[i], indent, is_ascii, level + 1,
                out);
  }
  new_line(level);
  out.push_back(is_object ? '}' : ']');
}

const Json& member(const Json& object, std::string_view name, Json::Kind kind) {
  const Json* found = object.find(name);
  require(found != nullptr, ErrorCode::kDataCorrupt, "missing '", name, "'");
  require(found->kind == kind, ErrorCode::kDataCorrupt, "'", name, "' is ",
          json_kind_name(found->kind), ", expected ", json_kind_name(kind));
  return *found;
}

}  // namespace

const Json* Json::find(std::string_view name) const {
  for (const auto& [member_name, value] : members) {
    if (member_name == name) return &value;
  }
  return nullptr;
}

int64_t Json::get_int(std::string_view name) const {
  return member(*this, name, Kind::kInt).integer;
}
double Json::get_float(std::string_view name) const {
  const Json* found = find(name);
  if (found != nullptr && found->kind == Kind::kInt) return static_cast<double>(found->integer);
  return member(*this, name, Kind::kFloat).real;
}
bool Json::get_bool(std::string_view name) const {
  return member(*this, name, Kind::kBool).integer != 0;
}
const std::string& Json::get_string(std::string_view name) const {
  return member(*this, name, Kind::kString).text;
}
const Json& Json::get_array(std::string_view name) const {
  return member(*this, name, Kind::kArray);
}
const Json& Json::get_object(std::string_view name) const {
  return member(*this, name, Kind::kObject);
}

std::string_view json_kind_name(Json::Kind kind) {
  switch (kind) {
    case Json::Kind::kNull:
      return "null";
    case Json::Kind::kBool:
      return "a boolean";
    case Json::Kind::kInt:
      return "an integer";
    case Json::Kind::kUnsigned:
      return "an integer above 2^63 - 1";
    case Json::Kind::kFloat:
      return "a fraction";
    case Json::Kind::kString:
      return "a string";
    case Json::Kind::kArray:
      return "an array";
    case Json::Kind::kObject:
      return "an object";
  }
  return "unknown";
}

Json parse_json(std::string_view text, const JsonLimits& limits) {
  JsonLimits bounds = limits;
  if (limits.bytes_per_node > 0) {
    bounds.max_nodes =
        std::max(limits.max_nodes, static_cast<int64_t>(text.size()) / limits.bytes_per_node);
  }
  Builder builder(bounds);
  // The parser skips a byte order mark, which RFC 8259 allows to refuse.
  require(!text.starts_with("\xef\xbb\xbf"), ErrorCode::kDataCorrupt,
          "not valid JSON at byte 0: starts with a byte order mark");
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

std::string dump_json(const Json& value, int indent, bool is_ascii) {
  std::string out;
  append_json(value, indent, is_ascii, 0, out);
  return out;
}

}  // namespace vgen::io
