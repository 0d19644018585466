#pragma once
// The images below a folder or inside a tar, before anything is said about classes.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vgen/data/detail/byte_source.h"

namespace vgen::data::detail {

struct ListedFile {
  std::string path;     ///< below the root, '/' between folders
  uint64_t offset = 0;  ///< tar: of the bytes in the tar; folder: 0
  uint64_t size = 0;    ///< tar: bytes; folder: 0, not looked up
};

/// Everything that a dataset needs to know about its files. Plain data, so that it can be cached.
struct FileList {
  std::vector<ListedFile> files;          ///< images, in no particular order
  std::vector<std::string> folders;       ///< all folders below the root, also those without images
  std::vector<int64_t> folder_mtimes_ns;  ///< folder root: beside `folders`; its own is the first
  int64_t ignored = 0;                    ///< other files, hidden names, unsafe tar names
};

/// Walks a folder; links are followed, names that begin with a dot are left out. folders[0] is "",
/// the root itself. Throws Error(kUnavailable) for what cannot be read and for a loop of links.
FileList list_folder(const std::string& root);

/// Walks a tar and the tars in it (one level).
FileList list_tar(const ByteSource& tar, const std::string& where);

/// Reads a list that save_file_list wrote, if `stamp` is the stamp it was written with (a tar) and
/// every folder is unchanged (a folder, `root` not empty). No value for a missing, stale, damaged
/// or foreign file.
std::unique_ptr<FileList> load_file_list(const std::string& path, const FileStamp& stamp,
                                         const std::string& root);

/// Writes atomically. Throws Error(kUnavailable, kNotFound).
void save_file_list(const FileList& list, const std::string& path, const FileStamp& stamp);

}  // namespace vgen::data::detail
