#pragma once
// Strict YAML configs bound to plain structs.
//
// A config struct declares its fields once, in a function found by argument-dependent lookup:
//     template <class Visitor> void visit_fields(Visitor& v, GptConfig& c) {
//       v("n_layer", c.n_layer, at_least(1));
//       v("loss", c.loss, one_of({"l1", "l2"}));
//       v("model", c.model);                      // a struct with its own visit_fields
//     }
// That list reads YAML, writes the resolved YAML and takes overrides, so none of them can drift.
// Field types: bool, int64_t, double, std::string, std::vector of these or of structs, structs.
//
// A file may name others at its top level: `include: base.yaml` or a list of files, relative to
// itself. What is included comes first, the file's own keys go over it, maps are merged key by key,
// lists and scalars are replaced. Unknown, duplicate and mistyped keys and values out of range are
// Error(kInvalidArgument): "b256.yaml:14: unknown key 'model.n_layr', is it 'n_layer'?".

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "vgen/core/error.h"

namespace vgen {

/// A YAML node of ours, with the place it came from. A tree: aliases are expanded.
struct ConfigNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string scalar;
  bool is_quoted = false;          ///< '12' in quotes is text, never a number
  std::vector<std::string> keys;   ///< kMap: names, in file order
  std::vector<ConfigNode> values;  ///< kMap: beside keys; kList: the items
  std::string origin;              ///< "b256.yaml:14" or "--set model.n_layer=6"

  const ConfigNode* find(std::string_view key) const;
};

/// Parses one YAML document. At most 1 MiB, 100,000 nodes, 64 levels: a config, not a data file.
ConfigNode parse_yaml(std::string_view text, const std::string& name);

/// Reads a file and what it includes, merged. Throws Error(kNotFound, kInvalidArgument).
ConfigNode load_yaml(const std::string& path);

/// Applies "model.n_layer=6" (the right side is YAML). A list item is a number: "stages.0.lr=1".
void apply_override(ConfigNode& root, const std::string& assignment);

/// YAML text that parse_yaml reads back.
std::string dump_yaml(const ConfigNode& node);

/// Range of a number. The message says "expected at least 1".
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool is_low_open = false;
};
inline Range at_least(double low) { return {.low = low}; }
/// Above `low`, up to `high`.
inline Range more_than(double low, double high = std::numeric_limits<double>::infinity()) {
  return {.low = low, .high = high, .is_low_open = true};
}
inline Range between(double low, double high) { return {.low = low, .high = high}; }

/// The texts that a string may be.
struct OneOf {
  std::vector<std::string> names;
};
inline OneOf one_of(std::vector<std::string> names) { return {std::move(names)}; }

/// Of a struct: the texts that one of its fields may be here, fewer than the struct itself takes.
///     v("model", c.model, only("model_type", {"c2i"}));
struct Only {
  std::string field;
  OneOf choice;
};
inline Only only(std::string field, std::vector<std::string> names) {
  return {std::move(field), {std::move(names)}};
}

/// Visitor that fills a struct from a ConfigNode.
class ConfigReader {
 public:
  /// `path` is the dotted name of the struct, "" at the root.
  ConfigReader(const ConfigNode& node, std::string path);

  template <class T>
  void operator()(const char* name, T& value) {
    if (const ConfigNode* node = take(name)) read(*node, full_name(name), value);
  }
  template <class T>
  void operator()(const char* name, T& value, const Range& range) {
    if (const ConfigNode* node = take(name)) {
      read(*node, full_name(name), value);
      check_range(*node, full_name(name), value, range);
    }
  }
  void operator()(const char* name, std::string& value, const OneOf& choice) {
    if (const ConfigNode* node = take(name)) {
      read(*node, full_name(name), value);
      check_choice(*node, full_name(name), value, choice);
    }
  }
  template <class T>
  void operator()(const char* name, T& value, const Only& allowed) {
    if (const ConfigNode* node = take(name)) {
      read(*node, full_name(name), value);
      const ConfigNode* field = node->find(allowed.field);
      if (field == nullptr || field->kind == ConfigNode::Kind::kNull) return;
      check_choice(*field, str_cat(full_name(name), ".", allowed.field), field->scalar,
                   allowed.choice);
    }
  }
  /// After the last field: whatever was not asked for is an error that names the nearest field.
  void reject_unread_keys() const;

 private:
  const ConfigNode* take(const char* name);
  std::string full_name(const char* name) const;

  static void read(const ConfigNode& node, const std::string& name, bool& value);
  static void read(const ConfigNode& node, const std::string& name, int64_t& value);
  static void read(const ConfigNode& node, const std::string& name, double& value);
  static void read(const ConfigNode& node, const std::string& name, std::string& value);
  template <class T>
  static void read(const ConfigNode& node, const std::string& name, std::vector<T>& values) {
    check_kind(node, name, ConfigNode::Kind::kList);
    values.clear();
    for (size_t i = 0; i < node.values.size(); ++i) {
      T value{};
      read(node.values[i], str_cat(name, ".", i), value);
      values.push_back(std::move(value));
    }
  }
  template <class T>
  requires requires(ConfigReader& v, T& c) { visit_fields(v, c); }
  static void read(const ConfigNode& node, const std::string& name, T& value) {
    check_kind(node, name, ConfigNode::Kind::kMap);
    ConfigReader reader(node, name);
    visit_fields(reader, value);
    reader.reject_unread_keys();
  }
  static void check_kind(const ConfigNode& node, const std::string& name, ConfigNode::Kind kind);
  static void check_range(const ConfigNode& node, const std::string& name, double value,
                          const Range& range);
  template <class T>
  static void check_range(const ConfigNode& node, const std::string& name,
                          const std::vector<T>& values, const Range& range) {
    for (size_t i = 0; i < values.size(); ++i) {
      check_range(node.values[i], str_cat(name, ".", i), static_cast<double>(values[i]), range);
    }
  }
  static void check_choice(const ConfigNode& node, const std::string& name,
                           const std::string& value, const OneOf& choice);

  const ConfigNode& node_;
  std::string path_;
  std::vector<std::string> known_;
};

/// Visitor that turns a struct into a ConfigNode, every field included.
class ConfigWriter {
 public:
  explicit ConfigWriter(ConfigNode& node) : node_(node) { node_.kind = ConfigNode::Kind::kMap; }

  template <class T, class... Constraints>
  void operator()(const char* name, const T& value, const Constraints&...) {
    node_.keys.emplace_back(name);
    node_.values.push_back(write(value));
  }

 private:
  static ConfigNode write(bool value);
  static ConfigNode write(int64_t value);
  static ConfigNode write(double value);
  static ConfigNode write(const std::string& value);
  template <class T>
  static ConfigNode write(const std::vector<T>& values) {
    ConfigNode node;
    node.kind = ConfigNode::Kind::kList;
    for (const T& value : values) node.values.push_back(write(value));
    return node;
  }
  template <class T>
  requires requires(ConfigWriter& v, T& c) { visit_fields(v, c); }
  static ConfigNode write(const T& value) {
    ConfigNode node;
    ConfigWriter writer(node);
    visit_fields(writer, const_cast<T&>(value));  // the writer only reads
    return node;
  }

  ConfigNode& node_;
};

/// A struct from an already loaded node.
template <class Config>
Config read_config(const ConfigNode& node) {
  Config config;
  ConfigReader reader(node, "");
  visit_fields(reader, config);
  reader.reject_unread_keys();
  return config;
}

/// A struct from a file ("" = only defaults and overrides) and "a.b=c" overrides, which win.
template <class Config>
Config load_config(const std::string& path, const std::vector<std::string>& overrides = {}) {
  ConfigNode node;
  if (!path.empty()) node = load_yaml(path);
  for (const std::string& assignment : overrides) apply_override(node, assignment);
  return read_config<Config>(node);
}

/// The fully resolved config: load_config of it gives the same struct.
template <class Config>
std::string dump_config(const Config& config) {
  ConfigNode node;
  ConfigWriter writer(node);
  visit_fields(writer, const_cast<Config&>(config));  // the writer only reads
  return dump_yaml(node);
}

}  // namespace vgen
