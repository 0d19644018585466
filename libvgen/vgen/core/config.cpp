#include "vgen/core/config.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

namespace vgen {

namespace {

constexpr size_t kMaxFileSizeBytes = 1 << 20;
constexpr int kMaxNodes = 100000;
constexpr int kMaxDepth = 64;
constexpr int kMaxIncludes = 100;

[[noreturn]] void reject(const ConfigNode& node, const std::string& name, std::string_view why) {
  throw_error(ErrorCode::kInvalidArgument, node.origin.empty() ? "config" : node.origin, ": '",
              name, "': ", why);
}

std::string describe(const ConfigNode& node) {
  switch (node.kind) {
    case ConfigNode::Kind::kNull:
      return "nothing";
    case ConfigNode::Kind::kScalar:
      return str_cat("'", printable(node.scalar), "'");
    case ConfigNode::Kind::kList:
      return "a list";
    case ConfigNode::Kind::kMap:
      return "a map of keys";
  }
  return "?";
}

// Turns yaml-cpp's graph into our tree. Aliases are expanded, so the number of nodes is bounded.
class TreeBuilder {
 public:
  explicit TreeBuilder(std::string name) : name_(std::move(name)) {}

  ConfigNode build(const YAML::Node& yaml, int depth) {
    ConfigNode node;
    node.origin = origin(yaml.Mark());
    if (++num_nodes_ > kMaxNodes) {
      throw_error(ErrorCode::kInvalidArgument, node.origin, ": more than ", kMaxNodes,
                  " values: this is not a config");
    }
    if (depth > kMaxDepth) {
      throw_error(ErrorCode::kInvalidArgument, node.origin, ": nested more than ", kMaxDepth,
                  " levels deep");
    }
    switch (yaml.Type()) {
      case YAML::NodeType::Undefined:
      case YAML::NodeType::Null:
        break;
      case YAML::NodeType::Scalar:
        node.kind = ConfigNode::Kind::kScalar;
        node.scalar = yaml.Scalar();
        node.is_quoted = yaml.Tag() == "!";  // yaml-cpp's tag of a quoted scalar
        break;
      case YAML::NodeType::Sequence:
        node.kind = ConfigNode::Kind::kList;
        for (const YAML::Node& item : yaml) node.values.push_back(build(item, depth + 1));
        break;
      case YAML::NodeType::Map:
        node.kind = ConfigNode::Kind::kMap;
        for (const auto& entry : yaml) add_entry(node, entry.first, entry.second, depth);
        break;
    }
    return node;
  }

  std::string origin(const YAML::Mark& mark) const {
    return mark.is_null() ? name_ : str_cat(name_, ":", mark.line + 1);
  }

 private:
  void add_entry(ConfigNode& node, const YAML::Node& key, const YAML::Node& value, int depth) {
    const std::string where = origin(key.Mark());
    require(key.IsScalar(), ErrorCode::kInvalidArgument, where, ": a key must be plain text");
    const std::string& name = key.Scalar();
    require(node.find(name) == nullptr, ErrorCode::kInvalidArgument, where, ": duplicate key '",
            printable(name), "'");
    ConfigNode child = build(value, depth + 1);
    child.origin = where;  // the line of the key is the one to look at
    node.keys.push_back(name);
    node.values.push_back(std::move(child));
  }

  std::string name_;
  int num_nodes_ = 0;
};

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::error_code error;
  if (!file || std::filesystem::is_directory(path, error)) {
    throw_error(ErrorCode::kNotFound, path, ": cannot read this config file");
  }
  std::string text(kMaxFileSizeBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  require(text.size() <= kMaxFileSizeBytes, ErrorCode::kInvalidArgument, path, ": larger than ",
          format_bytes(kMaxFileSizeBytes), ": this is not a config");
  return text;
}

// Puts `over` on top of `base`: maps key by key, all else replaced.
void merge(ConfigNode& base, ConfigNode over) {
  if (base.kind != ConfigNode::Kind::kMap || over.kind != ConfigNode::Kind::kMap) {
    base = std::move(over);
    return;
  }
  for (size_t i = 0; i < over.keys.size(); ++i) {
    const auto found = std::find(base.keys.begin(), base.keys.end(), over.keys[i]);
    if (found == base.keys.end()) {
      base.keys.push_back(over.keys[i]);
      base.values.push_back(std::move(over.values[i]));
    } else {
      merge(base.values[found - base.keys.begin()], std::move(over.values[i]));
    }
  }
}

class IncludeLoader {
 public:
  ConfigNode load(const std::string& path) {
    const auto canonical = std::filesystem::weakly_canonical(path);
    require(std::find(open_.begin(), open_.end(), canonical) == open_.end(),
            ErrorCode::kInvalidArgument, path, ": includes itself");
    require(++num_loaded_ <= kMaxIncludes, ErrorCode::kInvalidArgument, path, ": more than ",
            kMaxIncludes, " files included");
    ConfigNode own = parse_yaml(read_text(path), path);
    const auto include = std::find(own.keys.begin(), own.keys.end(), "include");
    if (include == own.keys.end()) return own;
    const size_t at = static_cast<size_t>(include - own.keys.begin());
    const ConfigNode list = std::move(own.values[at]);
    own.keys.erase(own.keys.begin() + static_cast<std::ptrdiff_t>(at));
    own.values.erase(own.values.begin() + static_cast<std::ptrdiff_t>(at));

    open_.push_back(canonical);
    ConfigNode merged;
    merged.kind = ConfigNode::Kind::kMap;
    if (list.kind == ConfigNode::Kind::kList) {
      for (const ConfigNode& item : list.values) merge(merged, load_included(path, item));
    } else {
      merge(merged, load_included(path, list));
    }
    merge(merged, std::move(own));
    open_.pop_back();
    return merged;
  }

 private:
  ConfigNode load_included(const std::string& from, const ConfigNode& item) {
    if (item.kind != ConfigNode::Kind::kScalar || item.scalar.empty()) {
      reject(item, "include",
             str_cat("expected a file name or a list of them, found ", describe(item)));
    }
    const std::string path = (std::filesystem::path(from).parent_path() / item.scalar).string();
    try {
      return load(path);
    } catch (Error& error) {
      error.add_context(item.origin);
      throw;
    }
  }

  std::vector<std::filesystem::path> open_;
  int num_loaded_ = 0;
};

// A scalar as yaml-cpp would have to quote it, so that it reads back as text.
bool needs_quotes(const std::string& text) {
  int64_t integer;
  double number;
  static const std::set<std::string> kWords = {"",     "~",     "null", "true", "false", "yes",
                                               "no",   "on",    "off",  "nan",  "inf",   ".nan",
                                               ".inf", "-.inf", "-inf", "y",    "n"};
  return parse_int(text, integer) || parse_double(text, number) || kWords.count(to_lower(text)) > 0;
}

// yaml-cpp leaves a carriage return as it is, and reads it as the end of a line.
void emit_text(YAML::Emitter& out, const std::string& text, bool must_quote) {
  if (must_quote || text.find('\r') != std::string::npos) out << YAML::DoubleQuoted;
  out << text;
}

void emit(YAML::Emitter& out, const ConfigNode& node) {
  switch (node.kind) {
    case ConfigNode::Kind::kNull:
      out << YAML::Null;
      break;
    case ConfigNode::Kind::kScalar:
      emit_text(out, node.scalar, node.is_quoted && needs_quotes(node.scalar));
      break;
    case ConfigNode::Kind::kList: {
      const bool is_flat =
          std::all_of(node.values.begin(), node.values.end(),
                      [](const auto& item) { return item.kind == ConfigNode::Kind::kScalar; });
      if (is_flat) out << YAML::Flow;
      out << YAML::BeginSeq;
      for (const ConfigNode& item : node.values) emit(out, item);
      out << YAML::EndSeq;
      break;
    }
    case ConfigNode::Kind::kMap:
      out << YAML::BeginMap;
      for (size_t i = 0; i < node.keys.size(); ++i) {
        out << YAML::Key;
        emit_text(out, node.keys[i], /*must_quote=*/false);
        out << YAML::Value;
        emit(out, node.values[i]);
      }
      out << YAML::EndMap;
      break;
  }
}

// Takes a document's events and forgets them.
class NoHandler : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}
};

// Not YAML::LoadAll: for some broken texts, "!," for one, yaml-cpp 0.7 finds documents without end.
bool has_several_documents(const std::string& text) {
  std::istringstream stream(text);
  YAML::Parser parser(stream);
  NoHandler handler;
  return parser.HandleNextDocument(handler) && parser.HandleNextDocument(handler);
}

ConfigNode scalar_node(std::string text, bool is_quoted) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::kScalar;
  node.scalar = std::move(text);
  node.is_quoted = is_quoted;
  return node;
}

}  // namespace

const ConfigNode* ConfigNode::find(std::string_view key) const {
  const auto found = std::find(keys.begin(), keys.end(), key);
  return found == keys.end() ? nullptr : &values[static_cast<size_t>(found - keys.begin())];
}

namespace {

// Bytes of the UTF-8 character that begins at `at`; 0: there is none (Unicode 15, table 3-7).
size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0U;
  };
  const auto follows = [&](size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
    return byte(i) >= low && byte(i) <= high;
  };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return follows(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    const bool fits = follows(1, first == 0xE0 ? 0xA0 : 0x80, first == 0xED ? 0x9F : 0xBF);
    return fits && follows(2) ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const bool fits = follows(1, first == 0xF0 ? 0x90 : 0x80, first == 0xF4 ? 0x8F : 0xBF);
    return fits && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

// YAML is text: UTF-8 without control characters.
void require_text(std::string_view text, const std::string& name) {
  int64_t line = 1;
  for (size_t at = 0; at < text.size();) {
    const auto byte = static_cast<unsigned char>(text[at]);
    const bool is_line_end = byte == '\n' || text.substr(at, 2) == "\r\n";
    const bool is_control = (byte < 0x20 && byte != '\t' && !is_line_end) || byte == 0x7F;
    const size_t length = is_control ? 0 : utf8_length(text, at);
    require(length > 0, ErrorCode::kInvalidArgument, name, ":", line, ": not text: byte ",
            static_cast<int>(byte), is_control ? " is a control character" : " is not UTF-8",
            "; is this a config?");
    if (byte == '\n') ++line;
    at += length;
  }
}

}  // namespace

ConfigNode parse_yaml(std::string_view text, const std::string& name) {
  require(text.size() <= kMaxFileSizeBytes, ErrorCode::kInvalidArgument, name, ": larger than ",
          format_bytes(kMaxFileSizeBytes), ": this is not a config");
  require_text(text, name);
  TreeBuilder builder(name);
  try {
    const std::string document(text);
    require(!has_several_documents(document), ErrorCode::kInvalidArgument, name,
            ": more than one YAML document");
    return builder.build(YAML::Load(document), 0);
  } catch (const YAML::Exception& error) {
    throw_error(ErrorCode::kInvalidArgument, builder.origin(error.mark),
                ": not valid YAML: ", error.msg);
  }
}

ConfigNode load_yaml(const std::string& path) {
  ConfigNode node = IncludeLoader().load(path);
  if (node.kind == ConfigNode::Kind::kNull) node.kind = ConfigNode::Kind::kMap;
  require(node.kind == ConfigNode::Kind::kMap, ErrorCode::kInvalidArgument, path,
          ": expected `key: value` lines, found ", describe(node));
  return node;
}

void apply_override(ConfigNode& root, const std::string& assignment) {
  const std::string origin = str_cat("--set ", assignment);
  const size_t equals = assignment.find('=');
  require(equals != std::string::npos && equals > 0, ErrorCode::kInvalidArgument, origin,
          ": expected key=value, for example model.n_layer=6");
  ConfigNode value = parse_yaml(assignment.substr(equals + 1), origin);
  value.origin = origin;
  ConfigNode* node = &root;
  for (const std::string& part : split(assignment.substr(0, equals), '.')) {
    require(!part.empty(), ErrorCode::kInvalidArgument, origin, ": a key has an empty part");
    int64_t index = 0;
    if (node->kind == ConfigNode::Kind::kList) {
      require(
          parse_int(part, index) && index >= 0 && index < static_cast<int64_t>(node->values.size()),
          ErrorCode::kInvalidArgument, origin, ": '", part, "' is no item of a list of ",
          node->values.size());
      node = &node->values[static_cast<size_t>(index)];
      continue;
    }
    if (node->kind != ConfigNode::Kind::kMap) {
      require(node->kind == ConfigNode::Kind::kNull, ErrorCode::kInvalidArgument, origin,
              ": nothing is below ", describe(*node));
      node->kind = ConfigNode::Kind::kMap;
    }
    if (node->find(part) == nullptr) {
      node->keys.push_back(part);
      node->values.emplace_back().origin = origin;
    }
    node = const_cast<ConfigNode*>(node->find(part));
  }
  *node = std::move(value);
}

std::string dump_yaml(const ConfigNode& node) {
  YAML::Emitter out;
  emit(out, node);
  return str_cat(out.c_str(), "\n");
}

ConfigReader::ConfigReader(const ConfigNode& node, std::string path)
    : node_(node), path_(std::move(path)) {}

std::string ConfigReader::full_name(const char* name) const {
  return path_.empty() ? name : str_cat(path_, ".", name);
}

const ConfigNode* ConfigReader::take(const char* name) {
  known_.emplace_back(name);
  const ConfigNode* node = node_.find(name);
  // `key:` with nothing behind it keeps the default.
  return node != nullptr && node->kind != ConfigNode::Kind::kNull ? node : nullptr;
}

void ConfigReader::reject_unread_keys() const {
  for (size_t i = 0; i < node_.keys.size(); ++i) {
    const std::string& key = node_.keys[i];
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    const std::string nearest = nearest_name(key, known_);
    const std::string& origin = node_.values[i].origin;
    throw_error(ErrorCode::kInvalidArgument, origin.empty() ? "config" : origin, ": unknown key '",
                printable(full_name(key.c_str()), 200), "', ",
                nearest.empty() ? str_cat("expected one of: ", join(known_, ", "))
                                : str_cat("is it '", nearest, "'?"));
  }
}

void ConfigReader::check_kind(const ConfigNode& node, const std::string& name,
                              ConfigNode::Kind kind) {
  if (node.kind == kind) return;
  reject(node, name,
         str_cat("expected ", kind == ConfigNode::Kind::kList ? "a list" : "keys", ", found ",
                 describe(node)));
}

void ConfigReader::read(const ConfigNode& node, const std::string& name, bool& value) {
  if (node.kind == ConfigNode::Kind::kScalar && !node.is_quoted) {
    if (node.scalar == "true") return void(value = true);
    if (node.scalar == "false") return void(value = false);
  }
  reject(node, name, str_cat("expected true or false, found ", describe(node)));
}

void ConfigReader::read(const ConfigNode& node, const std::string& name, int64_t& value) {
  if (node.kind == ConfigNode::Kind::kScalar && !node.is_quoted) {
    if (parse_int(node.scalar, value)) return;
    double number = 0;  // 1e6 is a whole number too
    if (parse_double(node.scalar, number) && std::trunc(number) == number &&
        std::abs(number) <= 0x1p53) {
      return void(value = static_cast<int64_t>(number));
    }
  }
  reject(node, name, str_cat("expected a whole number, found ", describe(node)));
}

void ConfigReader::read(const ConfigNode& node, const std::string& name, double& value) {
  if (node.kind == ConfigNode::Kind::kScalar && !node.is_quoted) {
    double number = 0;
    if (parse_double(node.scalar, number) && !std::isnan(number)) return void(value = number);
  }
  reject(node, name, str_cat("expected a number, found ", describe(node)));
}

void ConfigReader::read(const ConfigNode& node, const std::string& name, std::string& value) {
  if (node.kind != ConfigNode::Kind::kScalar) {
    reject(node, name, str_cat("expected text, found ", describe(node)));
  }
  value = node.scalar;
}

void ConfigReader::check_range(const ConfigNode& node, const std::string& name, double value,
                               const Range& range) {
  if (range.is_low_open ? value > range.low : value >= range.low) {
    if (value <= range.high) return;
  }
  std::string expected;
  if (range.is_low_open) {
    expected = str_cat("more than ", range.low);
    if (!std::isinf(range.high)) expected += str_cat(", at most ", range.high);
  } else if (std::isinf(range.high)) {
    expected = str_cat("at least ", range.low);
  } else {
    expected = str_cat("from ", range.low, " to ", range.high);
  }
  reject(node, name, str_cat("expected ", expected, ", found ", describe(node)));
}

void ConfigReader::check_choice(const ConfigNode& node, const std::string& name,
                                const std::string& value, const OneOf& choice) {
  if (std::find(choice.names.begin(), choice.names.end(), value) != choice.names.end()) return;
  reject(node, name,
         str_cat("expected ", choice.names.size() == 1 ? "" : "one of ", join(choice.names, ", "),
                 "; found ", describe(node)));
}

ConfigNode ConfigWriter::write(bool value) { return scalar_node(value ? "true" : "false", false); }
ConfigNode ConfigWriter::write(int64_t value) { return scalar_node(str_cat(value), false); }
ConfigNode ConfigWriter::write(double value) { return scalar_node(format_double(value), false); }
ConfigNode ConfigWriter::write(const std::string& value) { return scalar_node(value, true); }

}  // namespace vgen
