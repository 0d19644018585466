#include "vgen/data/detail/file_list.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "vgen/core/error.h"
#include "vgen/core/random.h"
#include "vgen/data/detail/tar_reader.h"
#include "vgen/data/image.h"
#include "vgen/io/atomic_file.h"

namespace vgen::data::detail {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxDepth = 64;  // folders within folders; a loop of links ends here

void walk(const std::string& root, const std::string& folder, int depth, FileList& list) {
  const std::string path = folder.empty() ? root : str_cat(root, "/", folder);
  require(depth <= kMaxDepth, ErrorCode::kUnavailable, path, ": more than ", kMaxDepth,
          " folders deep; is there a loop of links?");
  list.folders.push_back(folder);
  list.folder_mtimes_ns.push_back(stamp_of(path).mtime_ns);
  std::error_code error;
  fs::directory_iterator entries(path, error);
  require(!error, ErrorCode::kUnavailable, path, ": cannot be listed: ", error.message());
  std::vector<std::string> subfolders;
  for (const fs::directory_entry& entry : entries) {
    const std::string name = entry.path().filename().string();
    const std::string relative = folder.empty() ? name : str_cat(folder, "/", name);
    if (name[0] == '.') {
      ++list.ignored;
    } else if (entry.is_directory(error)) {
      subfolders.push_back(relative);
    } else if (has_image_extension(name)) {
      list.files.push_back({.path = relative});
    } else {
      ++list.ignored;
    }
  }
  for (const std::string& subfolder : subfolders) walk(root, subfolder, depth + 1, list);
}

/// "a/b.jpg" from a stored name; "" for one that is empty, hidden or goes upwards.
std::string clean_name(const std::string& stored) {
  std::vector<std::string> parts;
  for (const std::string& part : split(stored, '/')) {
    if (part.empty() || part == ".") continue;
    if (part[0] == '.') return "";
    parts.push_back(part);
  }
  return join(parts, "/");
}

void add_parents(const std::string& path, std::vector<std::string>& folders) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return;
  const std::string parent = path.substr(0, slash);
  if (!folders.empty() && folders.back() == parent) return;  // the usual case: same as before
  add_parents(parent, folders);
  folders.push_back(parent);
}

void list_members(const ByteSource& tar, TarReader reader, const std::string& where,
                  const std::string& prefix, FileList& list) {
  while (const auto member = reader.next()) {
    const std::string name = clean_name(member->name);
    if (name.empty()) {
      list.ignored += member->is_file;
      continue;
    }
    const std::string path = prefix + name;
    if (member->is_file) add_parents(path, list.folders);
    if (member->is_folder) {
      add_parents(path + "/", list.folders);
    } else if (member->is_file && has_image_extension(name)) {
      list.files.push_back({.path = path, .offset = member->offset, .size = member->size});
    } else if (member->is_file && prefix.empty() && to_lower(name).ends_with(".tar")) {
      const std::string stem = path.substr(0, path.size() - 4);
      add_parents(stem + "/", list.folders);
      TarReader inner(tar, member->offset, member->offset + member->size,
                      str_cat(where, ": ", printable(name)));
      list_members(tar, inner, where, stem + "/", list);
    } else {
      ++list.ignored;
    }
  }
}

// The cache file: magic, stamp, counts, then the texts and numbers, then a hash of all before it.
constexpr std::string_view kMagic = "vgen index 1\n";

class Writer {
 public:
  void number(uint64_t value) { out_.append(reinterpret_cast<const char*>(&value), sizeof(value)); }
  void text(std::string_view value) {
    number(value.size());
    out_.append(value);
  }
  std::string finish() {
    number(hash_bytes(out_));
    return std::move(out_);
  }

 private:
  std::string out_{kMagic};
};

/// Nothing is believed: a read past the end makes the whole file invalid.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  uint64_t number() {
    uint64_t value = 0;
    if (rest_.size() < sizeof(value)) return fail();
    std::memcpy(&value, rest_.data(), sizeof(value));
    rest_.remove_prefix(sizeof(value));
    return value;
  }
  std::string text() {
    const uint64_t size = number();
    if (size > rest_.size()) return fail(), "";
    std::string value(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return value;
  }
  bool is_valid() const { return is_valid_; }
  bool is_done() const { return is_valid_ && rest_.empty(); }

 private:
  uint64_t fail() {
    is_valid_ = false;
    rest_ = {};
    return 0;
  }
  std::string_view rest_;
  bool is_valid_ = true;
};

bool folders_unchanged(const FileList& list, const std::string& root) {
  for (size_t i = 0; i < list.folders.size(); ++i) {
    const std::string path = list.folders[i].empty() ? root : str_cat(root, "/", list.folders[i]);
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) return false;
    if (stamp_of(path).mtime_ns != list.folder_mtimes_ns[i]) return false;
  }
  return true;
}

std::unique_ptr<FileList> parse_file_list(std::string_view bytes, const FileStamp& stamp) {
  if (!bytes.starts_with(kMagic) || bytes.size() < kMagic.size() + 8) return nullptr;
  uint64_t stored_hash = 0;
  std::memcpy(&stored_hash, bytes.data() + bytes.size() - 8, 8);
  bytes.remove_suffix(8);
  if (hash_bytes(bytes) != stored_hash) return nullptr;
  Reader in(bytes.substr(kMagic.size()));
  const FileStamp stored{.size = in.number(), .mtime_ns = static_cast<int64_t>(in.number())};
  if (stored != stamp) return nullptr;
  auto list = std::make_unique<FileList>();
  list->ignored = static_cast<int64_t>(in.number());
  for (uint64_t count = in.number(); count > 0 && in.is_valid(); --count) {
    list->folders.push_back(in.text());
    list->folder_mtimes_ns.push_back(static_cast<int64_t>(in.number()));
  }
  for (uint64_t count = in.number(); count > 0 && in.is_valid(); --count) {
    ListedFile file{.path = in.text()};
    file.offset = in.number();
    file.size = in.number();
    if (file.size > stamp.size || file.offset > stamp.size - file.size) return nullptr;
    list->files.push_back(std::move(file));
  }
  return in.is_done() ? std::move(list) : nullptr;
}

}  // namespace

FileList list_folder(const std::string& root) {
  FileList list;
  walk(root, "", 0, list);
  return list;
}

FileList list_tar(const ByteSource& tar, const std::string& where) {
  FileList list;
  list_members(tar, TarReader(tar, 0, tar.size(), where), where, "", list);
  std::sort(list.folders.begin(), list.folders.end());
  list.folders.erase(std::unique(list.folders.begin(), list.folders.end()), list.folders.end());
  list.folder_mtimes_ns.assign(list.folders.size(), 0);
  return list;
}

std::unique_ptr<FileList> load_file_list(const std::string& path, const FileStamp& stamp,
                                         const std::string& root) {
  try {
    const std::vector<std::byte> file = read_whole_file(path, uint64_t{4} << 30);
    auto list = parse_file_list({reinterpret_cast<const char*>(file.data()), file.size()}, stamp);
    if (list && !root.empty() && !folders_unchanged(*list, root)) return nullptr;
    return list;
  } catch (const Error&) {
    return nullptr;  // none there, or not readable: it is built anew
  }
}

void save_file_list(const FileList& list, const std::string& path, const FileStamp& stamp) {
  Writer out;
  out.number(stamp.size);
  out.number(static_cast<uint64_t>(stamp.mtime_ns));
  out.number(static_cast<uint64_t>(list.ignored));
  out.number(list.folders.size());
  for (size_t i = 0; i < list.folders.size(); ++i) {
    out.text(list.folders[i]);
    out.number(static_cast<uint64_t>(list.folder_mtimes_ns[i]));
  }
  out.number(list.files.size());
  for (const ListedFile& file : list.files) {
    out.text(file.path);
    out.number(file.offset);
    out.number(file.size);
  }
  io::write_file_atomically(path, out.finish());
}

}  // namespace vgen::data::detail
