#include "vgen/infer/class_names.h"

#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/io/mapped_file.h"

namespace vgen::infer {

namespace {

std::string trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return "";
  return std::string(text.substr(first, text.find_last_not_of(" \t\r") - first + 1));
}

// "7" or "7-9" as a range of labels; false for anything else.
bool parse_range(const std::string& text, int64_t& first, int64_t& last) {
  if (parse_int(text, first)) {
    last = first;
    return true;
  }
  const size_t dash = text.find('-', 1);
  return dash != std::string::npos && parse_int(text.substr(0, dash), first) &&
         parse_int(text.substr(dash + 1), last);
}

int64_t find_name(const std::string& name, const std::vector<std::string>& names) {
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<int64_t>(i);
  }
  std::vector<size_t> found;
  for (size_t i = 0; i < names.size(); ++i) {
    if (to_lower(names[i]) == to_lower(name)) found.push_back(i);
  }
  if (found.size() == 1) return static_cast<int64_t>(found[0]);
  require(found.empty(), ErrorCode::kInvalidArgument, "class '", printable(name),
          "': more than one class has this name in another case; give the label");
  require(!names.empty(), ErrorCode::kInvalidArgument, "class '", printable(name),
          "': this model's classes have no names here; give labels, or --class-names FILE");
  const std::string nearest = nearest_name(name, names);
  throw_error(ErrorCode::kInvalidArgument, "class '", printable(name), "': no such class",
              nearest.empty() ? "" : str_cat(", is it '", nearest, "'?"));
}

}  // namespace

std::vector<std::string> read_class_names(const std::string& path, int64_t num_classes) {
  std::vector<std::string> names;
  for (const std::string& line : split(io::read_text_file(path), '\n')) {
    names.push_back(trimmed(line));
  }
  while (!names.empty() && names.back().empty()) names.pop_back();
  require(static_cast<int64_t>(names.size()) == num_classes, ErrorCode::kInvalidArgument, path,
          ": ", names.size(), " names, but the model has ", num_classes, " classes");
  return names;
}

std::vector<std::string> default_class_names(int64_t num_classes) {
  if (num_classes != static_cast<int64_t>(kImagenetNames.size())) return {};
  return {kImagenetNames.begin(), kImagenetNames.end()};
}

std::vector<int64_t> parse_classes(const std::string& text, int64_t num_classes,
                                   const std::vector<std::string>& names) {
  std::vector<int64_t> labels;
  for (const std::string& part : split(text, ',')) {
    const std::string word = trimmed(part);
    require(!word.empty(), ErrorCode::kInvalidArgument, "classes '", printable(text),
            "': an empty item; expected labels, ranges such as 0-9, or names");
    int64_t first = 0, last = 0;
    if (!parse_range(word, first, last)) {
      labels.push_back(find_name(word, names));
      continue;
    }
    require(first >= 0 && first <= last && last < num_classes, ErrorCode::kInvalidArgument,
            "class ", word, ": the model has classes 0 to ", num_classes - 1);
    for (int64_t label = first; label <= last; ++label) labels.push_back(label);
  }
  require(!labels.empty(), ErrorCode::kInvalidArgument, "no class was asked for");
  return labels;
}

}  // namespace vgen::infer
