#include "vgen/data/detail/index_cache.h"

#include <cstdlib>
#include <filesystem>

#include "vgen/core/error.h"
#include "vgen/core/log.h"

namespace vgen::data::detail {
namespace {

namespace fs = std::filesystem;

/// Below this many files listing them again is as fast as reading the cached list.
constexpr size_t kMinFilesToCache = 4096;

std::string file_name(const std::string& path) {
  return fs::path(path).lexically_normal().filename().string();
}

/// Different paths with one base name must not share a cache file.
std::string cache_name(const std::string& path, const FileStamp& stamp) {
  const std::string key =
      str_cat(fs::absolute(path).lexically_normal().string(), "|", stamp.size, "|", stamp.mtime_ns);
  return str_cat(file_name(path), ".", hash_bytes(key));
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
  std::string beside = fs::absolute(path).lexically_normal().string();
  while (beside.size() > 1 && beside.ends_with('/')) beside.pop_back();
  std::vector<std::string> places = {beside + ".vgen-index"};
  const std::string folder = default_cache_folder();
  if (!folder.empty()) places.push_back(str_cat(folder, "/", name));
  return places;
}

/// The place that took it, "" = none.
std::string save_to_first(const FileList& list, const std::vector<std::string>& places,
                          const FileStamp& stamp) {
  std::string reason;
  for (const std::string& place : places) {
    try {
      std::error_code ignored;  // the write below reports a missing folder
      fs::create_directories(fs::path(place).parent_path(), ignored);
      save_file_list(list, place, stamp);
      log_debug("index cached in ", place);
      return place;
    } catch (const Error& error) {
      reason = error.what();
    }
  }
  if (!places.empty()) log_warning("the index is not cached and will be built again: ", reason);
  return "";
}

}  // namespace

CachedList cached_list(const std::string& path, const DatasetConfig& config, const FileStamp& stamp,
                       const std::string& folder_root, bool must_refresh,
                       const std::function<FileList()>& build) {
  const auto places = cache_places(path, config.index_cache);
  for (const std::string& place : places) {
    if (must_refresh) break;
    if (auto list = load_file_list(place, stamp, folder_root)) return {std::move(*list), place};
  }
  CachedList result{.list = build(), .place = {}};
  // An index folder that was named is always used; "auto" leaves small datasets alone.
  if (must_refresh || result.list.files.size() >= kMinFilesToCache ||
      config.index_cache != "auto") {
    result.place = save_to_first(result.list, places, stamp);
  }
  return result;
}

std::string unpacked_path(const DatasetConfig& config) {
  if (config.index_cache == "off") return "";
  const fs::path folder =
      config.index_cache == "auto" ? default_cache_folder() : config.index_cache;
  if (folder.empty()) return "";
  std::error_code ignored;  // the write reports a missing folder
  fs::create_directories(folder, ignored);
  fs::path path = folder / cache_name(config.path, stamp_of(config.path));
  path += ".tar";
  return path;
}

}  // namespace vgen::data::detail
