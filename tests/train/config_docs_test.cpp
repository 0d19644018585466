// docs/configs.md against the structs: every key of every task has its row in a table, with its
// default and its choices, and no row is about a key that does not exist.

#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/support.h"
#include "vgen/core/config.h"
#include "vgen/core/strings.h"
#include "vgen/train/gpt_task.h"
#include "vgen/train/tokenizer_task.h"
#include "vgen/train/var_task.h"
#include "vgen/train/var_tokenizer_task.h"

namespace vgen::train {
namespace {

using test::project_path;
using test::read_file;
using Texts = std::vector<std::string>;

// --- the structs ---

struct Field {
  std::string default_text;  ///< as dump_yaml writes it
  Texts choices = {};        ///< of one_of
};

/// Visitor that lists the fields below a struct, "optimizer.lr"; those of the items of a list of
/// structs too, "optimizer.rules.match".
class FieldLister {
 public:
  FieldLister(std::map<std::string, Field>& fields, std::string path)
      : fields_(fields), path_(std::move(path)) {}

  template <class T, class... Constraints>
  void operator()(const char* name, T& value, const Constraints&... constraints) {
    const std::string full_name = path_.empty() ? name : str_cat(path_, ".", name);
    if constexpr (kIsStruct<T>) {
      FieldLister lister(fields_, full_name);
      visit_fields(lister, value);
    } else {
      Field& field = fields_[full_name];
      field.default_text = text_of(name, value);
      (add_choices(field, constraints), ...);
      list_items(full_name, value);
    }
  }

 private:
  template <class T>
  static constexpr bool kIsStruct = requires(ConfigWriter& v, T& c) {
    visit_fields(v, c);
  };

  template <class T>
  static std::string text_of(const char* name, const T& value) {
    ConfigNode node;
    ConfigWriter writer(node);
    writer(name, value);
    const std::string yaml = dump_yaml(node);  // "lr: 1e-04\n"
    const size_t begin = std::string_view(name).size() + 2;
    return yaml.substr(begin, yaml.size() - begin - 1);
  }

  static void add_choices(Field& field, const OneOf& choice) { field.choices = choice.names; }
  static void add_choices(Field& /*field*/, const Range& /*range*/) {}

  template <class T>
  void list_items(const std::string& full_name, const std::vector<T>& /*values*/) {
    if constexpr (kIsStruct<T>) {
      T item{};
      FieldLister lister(fields_, full_name);
      visit_fields(lister, item);
    }
  }
  template <class T>
  void list_items(const std::string& /*full_name*/, const T& /*value*/) {}

  std::map<std::string, Field>& fields_;
  std::string path_;
};

template <class Config>
std::map<std::string, Field> fields_of() {
  std::map<std::string, Field> fields;
  Config config;
  FieldLister lister(fields, "");
  visit_fields(lister, config);
  return fields;
}

/// By task, then by dotted name.
using AllFields = std::map<std::string, std::map<std::string, Field>>;

AllFields all_fields() {
  return {{"tokenizer", fields_of<TokenizerRunConfig>()},
          {"var_tokenizer", fields_of<VarTokenizerRunConfig>()},
          {"gpt", fields_of<GptRunConfig>()},
          {"var", fields_of<VarRunConfig>()}};
}

// --- the page ---

/// A section of the tasks of a table: `data:` (gpt, var). "" = the top level.
struct Section {
  std::string path;
  Texts tasks;
};

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(' ');
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(' ') - begin + 1);
}

/// What stands in backticks.
Texts code_in(std::string_view text) {
  Texts found;
  const Texts parts = split(text, '`');
  for (size_t i = 1; i < parts.size(); i += 2) found.push_back(parts[i]);
  return found;
}

Texts cells_of(std::string_view line) {
  if (!line.starts_with("|")) return {};
  Texts cells;
  for (const std::string& cell : split(line.substr(1), '|')) cells.push_back(trimmed(cell));
  return cells;
}

/// "`data:` (tokenizer); `images:` (var)". Without brackets: all tasks.
std::vector<Section> parse_head(const std::string& head, const AllFields& all) {
  std::vector<Section> sections;
  for (const std::string& text : split(head, ';')) {
    Texts tasks;
    if (const size_t open = text.find('('); open != text.npos) {
      const std::string names = text.substr(open + 1, text.find(')') - open - 1);
      for (const std::string& name : split(names, ',')) tasks.push_back(trimmed(name));
    } else {
      for (const auto& [task, fields] : all) tasks.push_back(task);
    }
    for (const std::string& section : code_in(text)) {
      sections.push_back({section.substr(0, section.find(':')), tasks});
    }
    if (code_in(text).empty()) sections.push_back({"", tasks});
  }
  return sections;
}

/// Compares the tables with the structs, row by row.
class Comparison {
 public:
  explicit Comparison(const AllFields& all) : all_(all) {}

  void add_row(const std::vector<Section>& sections, const Texts& cells) {
    const Texts keys = code_in(cells[0]);
    if (keys.size() != 1 || cells.size() < 3) {
      complaints_.push_back(str_cat("a row without one key and its meaning: ", cells[0]));
      return;
    }
    std::set<std::string> defaults, choices;
    for (const Section& section : sections) {
      const std::string name = section.path.empty() ? keys[0] : str_cat(section.path, ".", keys[0]);
      for (const std::string& task : section.tasks) {
        const Field* field = take(task, name);
        if (field == nullptr) continue;
        defaults.insert(field->default_text);
        choices.insert(field->choices.begin(), field->choices.end());
      }
    }
    if (defaults.empty()) return;  // there is no such key
    const Texts told = code_in(cells[1]), words = code_in(str_cat(cells[1], " ", cells[2]));
    if (std::set<std::string>(told.begin(), told.end()) != defaults) {
      complaints_.push_back(str_cat(keys[0], ": default ", cells[1], ", is ",
                                    join(Texts(defaults.begin(), defaults.end()), "; ")));
    }
    for (const std::string& choice : choices) {
      if (std::ranges::count(words, choice) == 0) {
        complaints_.push_back(str_cat(keys[0], ": does not name the choice ", choice));
      }
    }
  }

  /// After the last row.
  Texts complaints() const {
    Texts result = complaints_;
    for (const auto& [task, fields] : all_) {
      for (const auto& [name, field] : fields) {
        if (seen_.contains({task, name})) continue;
        result.push_back(str_cat(task, ": ", name, " is missing"));
      }
    }
    return result;
  }

 private:
  const Field* take(const std::string& task, const std::string& name) {
    const auto fields = all_.find(task);
    const Field* field = nullptr;
    if (fields != all_.end()) {
      if (const auto found = fields->second.find(name); found != fields->second.end()) {
        field = &found->second;
      }
    }
    if (field == nullptr) {
      complaints_.push_back(str_cat(task, ": there is no ", name));
    } else if (!seen_.insert({task, name}).second) {
      complaints_.push_back(str_cat(task, ": ", name, " is told twice"));
    }
    return field;
  }

  const AllFields& all_;
  std::set<std::pair<std::string, std::string>> seen_;  // task, name
  Texts complaints_;
};

/// What the page lacks or has wrong. Its tables of keys are those whose second column is `default`.
Texts complaints_about(const std::string& page) {
  const AllFields all = all_fields();
  Comparison comparison(all);
  std::optional<std::vector<Section>> sections;  // of the table that the line is in
  for (const std::string& line : split(page, '\n')) {
    const Texts cells = cells_of(line);
    if (cells.empty()) {
      sections.reset();
    } else if (cells.size() > 1 && cells[1] == "default") {
      sections = parse_head(cells[0], all);
    } else if (sections && !cells[0].starts_with("---")) {
      comparison.add_row(*sections, cells);
    }
  }
  return comparison.complaints();
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  INFO(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

TEST_CASE("config docs: a row for every key, with its default and choices", "[train]") {
  CHECK(complaints_about(read_file(project_path("docs/configs.md"))) == Texts{});
}

TEST_CASE("config docs: the tasks compared are all there are", "[train]") {
  const AllFields all = all_fields();
  Texts tasks = all.at("gpt").at("task").choices;
  std::ranges::sort(tasks);
  Texts compared;
  for (const auto& [task, fields] : all) compared.push_back(task);
  CHECK(compared == tasks);
  // Fields of a section, of the items of a list, and of a default that a task sets.
  CHECK(all.at("gpt").at("schedule.kind").default_text == "constant");
  CHECK(all.at("tokenizer").at("disc_optimizer.rules.lr_scale").default_text == "1");
  CHECK(all.at("var").at("optimizer.kind").default_text == "adamw");
}

TEST_CASE("config docs: what is missing or wrong is named", "[train]") {
  const std::string page = read_file(project_path("docs/configs.md"));
  const auto complaints = [&](const std::string& from, const std::string& to) {
    return complaints_about(replaced(page, from, to));
  };
  CHECK(complaints("| `growth_interval` | `2000` |", "| growth interval | `2000` |") ==
        Texts{"a row without one key and its meaning: growth interval",
              "gpt: grad_scaler.growth_interval is missing",
              "tokenizer: grad_scaler.growth_interval is missing",
              "var: grad_scaler.growth_interval is missing",
              "var_tokenizer: grad_scaler.growth_interval is missing"});
  CHECK(complaints("| `beta2` | `0.95` |", "| `beta2` | `0.999` |") ==
        Texts{"beta2: default `0.999`, is 0.95"});
  CHECK(complaints("`adam`; VAR: `adamw`", "`adam`") ==
        Texts{"kind: default `adam`, is adam; adamw"});
  CHECK(complaints("`max`, the largest; `min`, the smallest", "`max`, the largest") ==
        Texts{"best_mode: does not name the choice min"});
  CHECK(complaints("| `label_smoothing` | `0` |", "| `label_smooth` | `0` |") ==
        Texts{"var: there is no label_smooth", "var: label_smoothing is missing"});
  CHECK(complaints("| `num_res_blocks` | `2` |",
                   "| `ch` | `128` | again |\n| `num_res_blocks` | `2` |") ==
        Texts{"tokenizer: model.ch is told twice"});
}

}  // namespace
}  // namespace vgen::train
