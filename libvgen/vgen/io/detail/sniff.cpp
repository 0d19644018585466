#include "vgen/io/detail/sniff.h"

#include <algorithm>
#include <string_view>

#include "vgen/core/error.h"
#include "vgen/io/detail/bytes.h"
#include "vgen/io/detail/zip_reader.h"

namespace vgen::io::detail {
namespace {

// The pickled integer 0x1950a86a20f9469cfc6c.
constexpr std::string_view kLegacyMagic(
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e", 15);

FileKind tell_zip(std::span<const std::byte> file) {
  const ZipReader zip(file);
  for (const ZipEntry& entry : zip.entries()) {
    if (entry.name.ends_with("/data.pkl") || entry.name == "data.pkl") return FileKind::kTorchZip;
  }
  for (const ZipEntry& entry : zip.entries()) {
    if (entry.name.ends_with(".npy")) return FileKind::kNpz;
  }
  throw_error(ErrorCode::kDataCorrupt,
              "a zip without data.pkl (PyTorch) and without .npy members (NumPy)");
}

}  // namespace

FileKind sniff(std::span<const std::byte> file) {
  const std::string_view text = as_text(file.first(std::min<size_t>(file.size(), 1024)));
  require(!text.empty(), ErrorCode::kDataCorrupt, "the file is empty (0 bytes)");
  if (text.starts_with("PK\3\4") || text.starts_with("PK\5\6")) return tell_zip(file);
  if (text.starts_with("\x93NUMPY")) return FileKind::kNpy;
  if (text.starts_with(kLegacyMagic)) return FileKind::kTorchLegacy;
  if (text.starts_with('{')) return FileKind::kShardIndex;
  if (text.size() > 8 && text[8] == '{') return FileKind::kSafetensors;
  const size_t first = std::min(text.find_first_not_of(" \t\r\n"), text.size());
  require(text.substr(first, 1) != "<", ErrorCode::kDataCorrupt,
          "is a web page, not a checkpoint: the download failed, fetch it again");
  require(!text.starts_with("version https://git-lfs"), ErrorCode::kDataCorrupt,
          "is a git-lfs pointer, not the file itself: run `git lfs pull`");
  require(!text.starts_with("\x1f\x8b"), ErrorCode::kDataCorrupt,
          "is compressed with gzip: unpack it first");
  require(text.size() < 262 || text.substr(257, 5) != "ustar", ErrorCode::kDataCorrupt,
          "is a tar archive: unpack it first (PyTorch's form before 0.2 is not supported)");
  throw_error(ErrorCode::kDataCorrupt, "starts with '", printable(text.substr(0, 8)),
              "', which is none of .safetensors, .pt, .pth, .npy and .npz");
}

}  // namespace vgen::io::detail
