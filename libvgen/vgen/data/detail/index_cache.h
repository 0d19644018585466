#pragma once
// Where the list of a dataset's files is kept between runs.

#include <functional>
#include <string>

#include "vgen/data/dataset.h"
#include "vgen/data/detail/file_list.h"

namespace vgen::data::detail {

struct CachedList {
  FileList list;
  std::string place;  ///< the file that holds it, "" = it is not cached
};

/// The cached list of `path` if there is a current one, else build(), which is then cached when the
/// dataset is large or config.index_cache names a folder. `stamp`: of a tar. `folder_root`: of a
/// folder, "" for a tar. `must_refresh`: build and cache it in any case. A list that cannot be
/// cached is a warning.
CachedList cached_list(const std::string& path, const DatasetConfig& config, const FileStamp& stamp,
                       const std::string& folder_root, bool must_refresh,
                       const std::function<FileList()>& build);

/// Path that a decompressed tar gets when it is too large for memory; "" = it is not to be kept:
/// the cache is off, or there is no home to have one in.
std::string unpacked_path(const DatasetConfig& config);

}  // namespace vgen::data::detail
