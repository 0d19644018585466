#pragma once
// Where images and their labels come from: ImageNet-style class folders or a flat folder, on disk
// or inside a tar, without unpacking it.
//
//   folder          every sample is a file
//   .tar            read in place by offset; members that are tars themselves
//   (ILSVRC2012_img_train)
//                   count as folders named by their stem, and are read in place too
//   .tar.gz .tgz    decompressed once (.tar.xz, .tar.zst, .tar.bz2 too): kept in memory up to
//                   256 MiB, above that as a plain tar in the cache folder; without one
//                   (index_cache: off) at every open, as a temporary file that leaves nothing
//
// Classes are the folders in byte order of their names, label = rank (n01440764 = 0, ...). Samples
// are ordered by class, then folder, then file name; a folder is walked recursively, links are
// followed, names that begin with a dot are left out. Other files than images are ignored.
//
// The index of a large dataset is built once and cached, beside the data as `<path>.vgen-index`, or
// in ~/.cache/vgen where that cannot be written. It counts only while size and modification time of
// the tar, or of every folder, are unchanged.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vgen/core/config.h"

namespace vgen::data {

struct DatasetConfig {          // YAML sections `data.train`, `data.val`
  std::string path = {};        ///< folder, .tar or .tar.gz; "" = none
  std::string split = {};       ///< folder inside `path` to take, "train"; "" = all of `path`
  std::string layout = "auto";  ///< classes: folders are labels; flat: none; auto: what is found
  std::string labels = {};      ///< flat: text file, lines "file-name class-name"; "" = label -1
  int64_t repeat = 1;           ///< times that each image counts in an epoch, for tiny sets
  std::string index_cache = "auto";  ///< auto: see above; off; or a folder
};
template <class Visitor>
void visit_fields(Visitor& v, DatasetConfig& c) {
  v("path", c.path);
  v("split", c.split);
  v("layout", c.layout, one_of({"auto", "classes", "flat"}));
  v("labels", c.labels);
  v("repeat", c.repeat, at_least(1));
  v("index_cache", c.index_cache);
}

/// An opened dataset. Read-only after open: every method may be called from several threads.
class Dataset {
 public:
  /// Throws Error(kNotFound) for a missing path or split (the message lists what is there),
  /// Error(kDataCorrupt) for a damaged tar, Error(kInvalidArgument) for a dataset without images or
  /// a class folder without images.
  static Dataset open(const DatasetConfig& config);
  /// Single files in this order, flat and without labels. Whether they can be read, and are images,
  /// shows when they are. Throws Error(kInvalidArgument) for none.
  static Dataset of_files(const std::vector<std::string>& paths);
  /// Whether open() takes a path for a tar: by its name.
  static bool is_tar_name(const std::string& path);

  Dataset(Dataset&&) noexcept;
  Dataset& operator=(Dataset&&) noexcept;
  ~Dataset();

  int64_t size() const;                             ///< images; `repeat` is not counted
  const std::vector<std::string>& classes() const;  ///< by label; empty when flat without labels
  int64_t label(int64_t index) const;               ///< -1 = none
  std::string name(int64_t index) const;            ///< "train/n01440764/a.jpg", below the root
  std::string where(int64_t index) const;           ///< for messages: path of the root and name
  /// The bytes of the file. Throws Error(kNotFound, kUnavailable, kDataCorrupt), with where().
  std::vector<std::byte> read(int64_t index) const;

 private:
  friend struct IndexReport refresh_index(const DatasetConfig& config);
  struct Impl;
  explicit Dataset(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

struct IndexReport {
  int64_t images = 0;
  int64_t classes = 0;     ///< 0: flat, without labels
  int64_t ignored = 0;     ///< files that are no images, hidden ones too
  std::string place = {};  ///< the file that holds the index, "" = it could not be cached
};

/// `vgen data index`: lists the dataset anew and caches the index, whatever its size. A compressed
/// tar that fits into memory has none: it is listed at every open. Throws like Dataset::open.
IndexReport refresh_index(const DatasetConfig& config);

/// A table, and one JSON object {"path", "images", "classes", "ignored", "index"}.
std::string format_report(const IndexReport& report, const std::string& path);
std::string report_json(const IndexReport& report, const std::string& path);

}  // namespace vgen::data
