#include "vgen/data/detail/organise.h"

#include <algorithm>
#include <map>
#include <set>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/io/mapped_file.h"

namespace vgen::data::detail {
namespace {

std::string top_folder(const std::string& path) { return path.substr(0, path.find('/')); }

std::string_view folder_of(std::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
}

std::string_view base_name(std::string_view path) { return path.substr(path.rfind('/') + 1); }

/// "'a', 'b', 'c' and 4 more"
std::string list_some(const std::vector<std::string>& names) {
  std::vector<std::string> shown;
  for (size_t i = 0; i < names.size() && i < 5; ++i) {
    shown.push_back(str_cat("'", printable(names[i], 40), "'"));
  }
  const std::string rest =
      names.size() > shown.size() ? str_cat(" and ", names.size() - shown.size(), " more") : "";
  return join(shown, ", ") + rest;
}

std::vector<std::string> folders_at_top(const FileList& list) {
  std::set<std::string> names;
  for (const std::string& folder : list.folders) {
    if (!folder.empty()) names.insert(top_folder(folder));
  }
  return {names.begin(), names.end()};
}

/// Keeps what lies below `folder`, with names relative to it.
FileList below(FileList list, const std::string& folder) {
  const std::string prefix = folder + "/";
  FileList inside;
  inside.ignored = list.ignored;
  for (ListedFile& file : list.files) {
    if (!file.path.starts_with(prefix)) continue;
    file.path.erase(0, prefix.size());
    inside.files.push_back(std::move(file));
  }
  for (const std::string& name : list.folders) {
    if (name.starts_with(prefix)) inside.folders.push_back(name.substr(prefix.size()));
  }
  return inside;
}

bool has_files_at_top(const FileList& list) {
  return std::any_of(list.files.begin(), list.files.end(),
                     [](const ListedFile& f) { return f.path.find('/') == std::string::npos; });
}

bool has_folder(const FileList& list, const std::string& name) {
  return std::find(list.folders.begin(), list.folders.end(), name) != list.folders.end();
}

/// tar: "imagenet/train/..." and "photos/cat/..." are as good as "train/..." and "cat/...". A
/// folder that holds images itself is no wrapper but a class.
FileList without_wrapper(FileList list) {
  const auto top = folders_at_top(list);
  if (top.size() != 1 || has_files_at_top(list)) return list;
  FileList inside = below(list, top[0]);
  return has_files_at_top(inside) || inside.files.empty() ? list : inside;
}

FileList select_split(FileList list, const DatasetConfig& config, bool is_tar,
                      const std::string& where) {
  if (is_tar && !config.split.empty() && !has_folder(list, config.split)) {
    list = without_wrapper(std::move(list));
  }
  if (config.split.empty()) return is_tar ? without_wrapper(std::move(list)) : std::move(list);
  if (!is_tar) return list;  // the folder of the split was listed itself
  const auto top = folders_at_top(list);
  require(has_folder(list, config.split), ErrorCode::kNotFound, where, ": no folder '",
          printable(config.split), "' in it; ",
          top.empty() ? std::string("it has no folders: leave split empty")
                      : str_cat("there is ", list_some(top)));
  return below(std::move(list), config.split);
}

/// By class where folders are classes ("a/x" comes before "a-b"), then folder, then name.
void sort_in_folders(std::vector<Sample>& samples, bool by_label) {
  std::sort(samples.begin(), samples.end(), [by_label](const Sample& a, const Sample& b) {
    if (by_label && a.label != b.label) return a.label < b.label;
    const auto folder_a = folder_of(a.file.path), folder_b = folder_of(b.file.path);
    if (folder_a != folder_b) return folder_a < folder_b;
    return base_name(a.file.path) < base_name(b.file.path);
  });
}

/// A tar that was appended to may hold a name twice: as for tar itself, the last one counts.
void drop_replaced(std::vector<ListedFile>& files, const std::string& where) {
  std::stable_sort(files.begin(), files.end(),
                   [](const ListedFile& a, const ListedFile& b) { return a.path < b.path; });
  const size_t before = files.size();
  const auto kept =
      std::unique(files.rbegin(), files.rend(),
                  [](const ListedFile& a, const ListedFile& b) { return a.path == b.path; });
  files.erase(files.begin(), kept.base());
  if (files.size() != before) {
    log_warning(where, ": ", before - files.size(),
                " images are stored twice under one name; the last one of each counts");
  }
}

Samples by_class(FileList list, const std::string& where) {
  Samples out;
  out.classes = folders_at_top(list);
  require(!out.classes.empty(), ErrorCode::kInvalidArgument, where,
          ": no class folders in it; expected <class>/<image>, or set layout: flat");
  std::map<std::string, int64_t> labels;
  for (const std::string& name : out.classes) {
    labels.emplace(name, static_cast<int64_t>(labels.size()));
  }
  std::vector<int64_t> counts(out.classes.size(), 0);
  int64_t outside = 0;
  for (ListedFile& file : list.files) {
    if (file.path.find('/') == std::string::npos) {
      ++outside;
      continue;
    }
    const int64_t label = labels.at(top_folder(file.path));
    ++counts[static_cast<size_t>(label)];
    out.samples.push_back({.file = std::move(file), .label = label});
  }
  std::vector<std::string> empty;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) empty.push_back(out.classes[i]);
  }
  require(empty.empty() || out.samples.empty(), ErrorCode::kInvalidArgument, where, ": ",
          empty.size() == 1 ? "class folder " : "class folders ", list_some(empty),
          empty.size() == 1 ? " holds" : " hold",
          " no image; remove or fill it (labels are ranks of the folder names)");
  if (outside > 0) {
    log_warning(where, ": ", outside, " images beside the class folders are left out");
  }
  return out;
}

/// Lines "file-name class-name", '#' comments; commas count as spaces.
std::map<std::string, std::string> read_label_list(const std::string& path) {
  std::map<std::string, std::string> classes;
  int64_t number = 0;
  for (std::string line : split(io::read_text_file(path, size_t{256} << 20), '\n')) {
    ++number;
    std::replace_if(
        line.begin(), line.end(), [](char c) { return c == ',' || c == '\t' || c == '\r'; }, ' ');
    std::vector<std::string> words;
    for (std::string& word : split(line, ' ')) {
      if (!word.empty()) words.push_back(std::move(word));
    }
    if (words.empty() || words[0][0] == '#') continue;
    require(words.size() >= 2, ErrorCode::kDataCorrupt, path, ":", number, ": '",
            printable(line, 60), "': expected a file name and a class name");
    require(classes.emplace(words[0], words[1]).second, ErrorCode::kDataCorrupt, path, ":", number,
            ": '", printable(words[0]), "' is listed twice");
  }
  return classes;
}

/// A list may name files with or without their extension (Kaggle's leaves it out).
Samples by_label_list(FileList list, const std::string& path, const std::string& where) {
  const auto class_of = read_label_list(path);
  std::set<std::string> names;
  for (const auto& [file, name] : class_of) names.insert(name);
  Samples out;
  out.classes.assign(names.begin(), names.end());
  for (ListedFile& file : list.files) {
    const std::string base(base_name(file.path));
    auto found = class_of.find(file.path);
    if (found == class_of.end()) found = class_of.find(base);
    if (found == class_of.end()) found = class_of.find(base.substr(0, base.rfind('.')));
    require(found != class_of.end(), ErrorCode::kInvalidArgument, where, ": '",
            printable(file.path), "' is not in the label list ", path);
    const auto rank = std::lower_bound(out.classes.begin(), out.classes.end(), found->second);
    out.samples.push_back({.file = std::move(file), .label = rank - out.classes.begin()});
  }
  return out;
}

Samples flat(FileList list) {
  Samples out;
  for (ListedFile& file : list.files) out.samples.push_back({.file = std::move(file)});
  return out;
}

/// "train" and "val" are no classes: someone forgot to choose.
void reject_splits(const FileList& list, const std::string& where) {
  const auto top = folders_at_top(list);
  const bool has_train = std::find(top.begin(), top.end(), "train") != top.end();
  const bool has_val = std::find(top.begin(), top.end(), "val") != top.end();
  require(!has_train || !has_val, ErrorCode::kInvalidArgument, where, ": holds the splits ",
          list_some(top), "; choose one with split: train");
}

}  // namespace

Samples organise(FileList list, const DatasetConfig& config, bool is_tar,
                 const std::string& where) {
  list = select_split(std::move(list), config, is_tar, where);
  drop_replaced(list.files, where);
  const bool has_folders =
      std::any_of(list.files.begin(), list.files.end(),
                  [](const ListedFile& f) { return f.path.find('/') != std::string::npos; });
  const bool is_flat = config.layout == "flat" || !config.labels.empty() ||
                       (config.layout == "auto" && !has_folders && !list.files.empty());
  if (!is_flat && config.split.empty()) reject_splits(list, where);
  const int64_t ignored = list.ignored;
  Samples out;
  if (!config.labels.empty()) {
    require(config.layout != "classes", ErrorCode::kInvalidArgument, where,
            ": layout: classes takes the labels from the folders; remove labels: ", config.labels);
    out = by_label_list(std::move(list), config.labels, where);
  } else {
    out = is_flat ? flat(std::move(list)) : by_class(std::move(list), where);
  }
  require(!out.samples.empty(), ErrorCode::kInvalidArgument, where, ": holds no image (", ignored,
          " other files were found); expected ", is_flat ? "" : "<class>/",
          "*.jpg, .png, .webp, .bmp, .ppm, .pgm or .tif");
  sort_in_folders(out.samples, /*by_label=*/!is_flat);
  return out;
}

}  // namespace vgen::data::detail
