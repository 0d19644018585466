#include "vgen/data/dataset.h"

#include <cstdlib>
#include <filesystem>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/data/detail/archive.h"
#include "vgen/data/detail/file_list.h"
#include "vgen/data/detail/organise.h"

namespace vgen::data {
namespace {

namespace fs = std::filesystem;
using detail::FileList;
using detail::FileStamp;

constexpr uint64_t kMaxFileSize = uint64_t{1} << 30;  // of one image

/// Below this many files listing them again is as fast as reading the cached list.
constexpr size_t kMinFilesToCache = 4096;

std::string file_name(const std::string& path) {
  return fs::path(path).lexically_normal().filename().string();
}

/// Different paths with one base name must not share a cache file.
std::string cache_name(const std::string& path, const FileStamp& stamp) {
  const std::string key =
      str_cat(fs::absolute(path).lexically_normal().string(), "|", stamp.size, "|", stamp.mtime_ns);
  return str_cat(file_name(path), ".", detail::hash_bytes(key));
}

/// $XDG_CACHE_HOME/vgen or ~/.cache/vgen; "" when there is no home.
std::string default_cache_folder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache) {
    return str_cat(cache, "/vgen");
  }
  if (const char* home = std::getenv("HOME"); home && *home) return str_cat(home, "/.cache/vgen");
  return "";
}

/// Where the list of files of `path` may be cached, best place first.
std::vector<std::string> cache_places(const std::string& path, const std::string& index_cache) {
  if (index_cache == "off") return {};
  const std::string name = cache_name(path, {}) + ".vgen-index";
  if (index_cache != "auto") return {str_cat(index_cache, "/", name)};
  std::vector<std::string> places = {fs::path(path).lexically_normal().string() + ".vgen-index"};
  if (path.ends_with('/')) places[0] = str_cat(path.substr(0, path.size() - 1), ".vgen-index");
  const std::string folder = default_cache_folder();
  if (!folder.empty()) places.push_back(str_cat(folder, "/", name));
  return places;
}

void save_to_first(const FileList& list, const std::vector<std::string>& places,
                   const FileStamp& stamp) {
  std::string reason;
  for (const std::string& place : places) {
    try {
      std::error_code ignored;  // the write below reports a missing folder
      fs::create_directories(fs::path(place).parent_path(), ignored);
      detail::save_file_list(list, place, stamp);
      log_debug("index cached in ", place);
      return;
    } catch (const Error& error) {
      reason = error.what();
    }
  }
  if (!places.empty()) log_warning("the index is not cached and will be built again: ", reason);
}

template <class Build>
FileList cached_list(const std::string& path, const DatasetConfig& config, const FileStamp& stamp,
                     const std::string& folder_root, Build build) {
  const auto places = cache_places(path, config.index_cache);
  for (const std::string& place : places) {
    if (auto list = detail::load_file_list(place, stamp, folder_root)) return std::move(*list);
  }
  FileList list = build();
  // An index folder that was named is always used; "auto" leaves small datasets alone.
  if (list.files.size() >= kMinFilesToCache || config.index_cache != "auto") {
    save_to_first(list, places, stamp);
  }
  return list;
}

/// Path that a decompressed tar gets when it is too large for memory.
std::string unpacked_path(const DatasetConfig& config) {
  const bool has_place = config.index_cache != "auto" && config.index_cache != "off";
  std::string folder = has_place ? config.index_cache : default_cache_folder();
  if (folder.empty()) folder = ".";
  std::error_code ignored;  // the write reports a missing folder
  fs::create_directories(folder, ignored);
  return str_cat(folder, "/", cache_name(config.path, detail::stamp_of(config.path)), ".tar");
}

std::string names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (names.size() == 8) {
      names.push_back("...");
      break;
    }
    names.push_back(printable(entry.path().filename().string(), 40));
  }
  return names.empty() ? "nothing" : join(names, ", ");
}

void check_config(const DatasetConfig& config) {
  require(!config.path.empty(), ErrorCode::kInvalidArgument,
          "no dataset: set its path to a folder, a .tar or a .tar.gz");
  require(config.layout == "auto" || config.layout == "classes" || config.layout == "flat",
          ErrorCode::kInvalidArgument, "layout '", config.layout,
          "': expected auto, classes or flat");
  require(config.repeat >= 1, ErrorCode::kInvalidArgument, "repeat ", config.repeat,
          ": expected at least 1");
  if (fs::exists(config.path)) return;
  const std::string parent = fs::path(config.path).lexically_normal().parent_path().string();
  const std::string folder = parent.empty() ? "." : parent;
  throw_error(ErrorCode::kNotFound, config.path, ": no such folder or file; ",
              fs::is_directory(folder) ? str_cat(folder, " holds ", names_in(folder))
                                       : str_cat(folder, " does not exist either"));
}

}  // namespace

struct Dataset::Impl {
  std::string where;  // path of the root, with the split of a folder; "": single files
  std::unique_ptr<detail::ByteSource> tar;  // none: a folder
  detail::Samples samples;

  const detail::Sample& at(int64_t index) const {
    require(index >= 0 && index < static_cast<int64_t>(samples.samples.size()),
            ErrorCode::kInvalidArgument, where, ": sample ", index, " of ", samples.samples.size());
    return samples.samples[static_cast<size_t>(index)];
  }

  std::string path_of(const detail::ListedFile& file) const {
    return where.empty() ? file.path : str_cat(where, "/", file.path);
  }

  void open_folder(const DatasetConfig& config) {
    where = fs::path(config.path).lexically_normal().string();
    if (where.size() > 1 && where.ends_with('/')) where.pop_back();
    if (!config.split.empty()) {
      const std::string root = where;
      where = str_cat(root, "/", config.split);
      require(fs::is_directory(where), ErrorCode::kNotFound, where, ": no such folder; ", root,
              " holds ", names_in(root));
    }
    const auto list = [&] { return detail::list_folder(where); };
    samples = detail::organise(cached_list(where, config, {}, where, list), config, false, where);
  }

  void open_tar(const DatasetConfig& config) {
    where = config.path;
    const auto list = [&] { return detail::list_tar(*tar, where); };
    FileList files;
    if (detail::is_compressed_tar(config.path)) {
      tar = detail::open_compressed(config.path, unpacked_path(config));
      files = list();
    } else {
      tar = detail::open_file_source(config.path);
      files = cached_list(where, config, detail::stamp_of(config.path), "", list);
    }
    samples = detail::organise(std::move(files), config, true, where);
  }
};

Dataset::Dataset(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Dataset::Dataset(Dataset&&) noexcept = default;
Dataset& Dataset::operator=(Dataset&&) noexcept = default;
Dataset::~Dataset() = default;

Dataset Dataset::open(const DatasetConfig& config) {
  check_config(config);
  auto impl = std::make_unique<Impl>();
  if (fs::is_directory(config.path)) {
    impl->open_folder(config);
  } else if (is_tar_name(config.path)) {
    impl->open_tar(config);
  } else {
    throw_error(ErrorCode::kInvalidArgument, config.path,
                ": is a file, but not named .tar or .tar.gz; expected a folder of images or a tar");
  }
  return Dataset(std::move(impl));
}

Dataset Dataset::of_files(const std::vector<std::string>& paths) {
  require(!paths.empty(), ErrorCode::kInvalidArgument, "a dataset of no files");
  auto impl = std::make_unique<Impl>();
  for (const std::string& path : paths) {
    impl->samples.samples.push_back({.file = {.path = path}, .label = -1});
  }
  return Dataset(std::move(impl));
}

bool Dataset::is_tar_name(const std::string& path) {
  return detail::is_compressed_tar(path) || to_lower(path).ends_with(".tar");
}

int64_t Dataset::size() const { return static_cast<int64_t>(impl_->samples.samples.size()); }
const std::vector<std::string>& Dataset::classes() const { return impl_->samples.classes; }
int64_t Dataset::label(int64_t index) const { return impl_->at(index).label; }
std::string Dataset::name(int64_t index) const { return impl_->at(index).file.path; }
std::string Dataset::where(int64_t index) const {
  const std::string& path = impl_->at(index).file.path;
  if (impl_->where.empty()) return path;  // what the user named, not what a tar did
  return str_cat(impl_->where, "/", printable(path, 200));
}

std::vector<std::byte> Dataset::read(int64_t index) const {
  const detail::ListedFile& file = impl_->at(index).file;
  if (!impl_->tar) {
    return detail::read_whole_file(impl_->path_of(file), kMaxFileSize);
  }
  try {
    require(file.size <= kMaxFileSize, ErrorCode::kDataCorrupt, "holds ", format_bytes(file.size),
            ", at most ", format_bytes(kMaxFileSize), " are read");
    std::vector<std::byte> bytes(file.size);
    impl_->tar->read(file.offset, bytes);
    return bytes;
  } catch (Error& error) {
    error.add_context(where(index));
    throw;
  }
}

}  // namespace vgen::data
