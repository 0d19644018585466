#include "vgen/data/dataset.h"

#include <filesystem>

#include "vgen/core/error.h"
#include "vgen/data/detail/archive.h"
#include "vgen/data/detail/file_list.h"
#include "vgen/data/detail/index_cache.h"
#include "vgen/data/detail/organise.h"
#include "vgen/io/json.h"

namespace vgen::data {
namespace {

namespace fs = std::filesystem;
using detail::FileList;

constexpr uint64_t kMaxFileSize = uint64_t{1} << 30;  // of one image

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
  int64_t ignored = 0;      // files that are no images
  std::string index_place;  // "" = the index is not cached
  bool must_refresh = false;

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
    take(detail::cached_list(where, config, {}, where, must_refresh, list), config, false);
  }

  void open_tar(const DatasetConfig& config) {
    where = config.path;
    const auto list = [&] { return detail::list_tar(*tar, where); };
    detail::CachedList files;
    if (detail::is_compressed_tar(config.path)) {
      tar = detail::open_compressed(config.path, detail::unpacked_path(config));
      files.list = list();
    } else {
      tar = detail::open_file_source(config.path);
      files =
          detail::cached_list(where, config, detail::stamp_of(config.path), "", must_refresh, list);
    }
    take(std::move(files), config, true);
  }

  void take(detail::CachedList files, const DatasetConfig& config, bool is_tar) {
    ignored = files.list.ignored;
    index_place = files.place;
    samples = detail::organise(std::move(files.list), config, is_tar, where);
  }

  void open(const DatasetConfig& config) {
    check_config(config);
    if (fs::is_directory(config.path)) return open_folder(config);
    require(is_tar_name(config.path), ErrorCode::kInvalidArgument, config.path,
            ": is a file, but not named .tar or .tar.gz; expected a folder of images or a tar");
    open_tar(config);
  }
};

Dataset::Dataset(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Dataset::Dataset(Dataset&&) noexcept = default;
Dataset& Dataset::operator=(Dataset&&) noexcept = default;
Dataset::~Dataset() = default;

Dataset Dataset::open(const DatasetConfig& config) {
  auto impl = std::make_unique<Impl>();
  impl->open(config);
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

IndexReport refresh_index(const DatasetConfig& config) {
  Dataset::Impl impl;
  impl.must_refresh = true;
  impl.open(config);
  return {.images = static_cast<int64_t>(impl.samples.samples.size()),
          .classes = static_cast<int64_t>(impl.samples.classes.size()),
          .ignored = impl.ignored,
          .place = impl.index_place};
}

std::string format_report(const IndexReport& report, const std::string& path) {
  const auto count = [](int64_t n) { return format_count(static_cast<uint64_t>(n)); };
  return str_cat(path, "\n", "images   ", count(report.images), "\n", "classes  ",
                 count(report.classes), "\n", "ignored  ", count(report.ignored), " other files\n",
                 "index    ",
                 report.place.empty() ? "not cached: listed at every open" : report.place, "\n");
}

std::string report_json(const IndexReport& report, const std::string& path) {
  io::Json json = io::Json::object();
  json.set("path", io::Json::string(path));
  json.set("images", io::Json::number(report.images));
  json.set("classes", io::Json::number(report.classes));
  json.set("ignored", io::Json::number(report.ignored));
  json.set("index", report.place.empty() ? io::Json::null() : io::Json::string(report.place));
  return io::dump_json(json, 2) + "\n";
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
