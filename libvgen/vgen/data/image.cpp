#include "vgen/data/image.h"

#include <zlib.h>

#include <algorithm>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>

#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/data/detail/jpeg.h"
#include "vgen/data/detail/png.h"
#include "vgen/data/detail/quiet_cerr.h"

namespace vgen::data {
namespace {

/// OpenCV gives blue, green, red.
void swap_red_blue(const uint8_t* from, uint8_t* to, int64_t pixels) {
  for (int64_t i = 0; i < pixels; ++i, from += 3, to += 3) {
    to[0] = from[2];
    to[1] = from[1];
    to[2] = from[0];
  }
}

Image decode_with_opencv(std::span<const std::byte> file, const std::string& format) {
  const cv::Mat bytes(1, static_cast<int>(file.size()), CV_8UC1,
                      const_cast<std::byte*>(file.data()));  // imdecode only reads
  cv::Mat bgr;
  const detail::QuietCerr quiet;
  try {
    bgr = cv::imdecode(bytes, cv::IMREAD_COLOR | cv::IMREAD_IGNORE_ORIENTATION);
  } catch (const cv::Exception& error) {
    throw_error(ErrorCode::kDataCorrupt, format, " cannot be decoded: ", printable(error.err, 200));
  }
  require(!bgr.empty() && bgr.type() == CV_8UC3, ErrorCode::kDataCorrupt, format,
          " is damaged or truncated");
  Image image{.width = bgr.cols, .height = bgr.rows, .rgb = {}};
  image.rgb.resize(static_cast<size_t>(image.width * image.height * 3));
  for (int y = 0; y < bgr.rows; ++y) swap_red_blue(bgr.ptr(y), image.row(y), image.width);
  return image;
}

void check_image(const Image& image) {
  require(image.width > 0 && image.height > 0 &&
              image.rgb.size() == static_cast<size_t>(image.width * image.height * 3),
          ErrorCode::kInvalidArgument, "image of ", image.width, " x ", image.height, " with ",
          image.rgb.size(), " bytes: expected width * height * 3 bytes, at least 1 x 1");
}

}  // namespace

namespace detail {
void check_pixels(int64_t width, int64_t height, int64_t max_pixels) {
  require(width > 0 && height > 0, ErrorCode::kDataCorrupt, "image size is ", width, " x ", height);
  require(width <= max_pixels / height, ErrorCode::kDataCorrupt, "image of ", width, " x ", height,
          " pixels is over the limit of ", format_count(static_cast<uint64_t>(max_pixels)),
          " pixels (max_pixels)");
}
}  // namespace detail

Image decode_image(std::span<const std::byte> file, int64_t max_pixels, int64_t needed_side) {
  const ImageInfo info = probe_image(file);
  detail::check_pixels(info.width, info.height, max_pixels);
  if (info.format == "jpeg") return detail::decode_jpeg(file, max_pixels, needed_side);
  if (info.format == "png") return detail::decode_png(file);
  require(file.size() <= size_t{1} << 30, ErrorCode::kDataCorrupt, info.format, " file of ",
          format_bytes(file.size()), ": at most 1 GiB is read");
  return decode_with_opencv(file, info.format);
}

void check_min_side(int64_t width, int64_t height, int64_t min_side) {
  require(std::min(width, height) >= min_side, ErrorCode::kDataCorrupt, "image of ", width, " x ",
          height, " is too small: expected at least ", min_side, " pixels a side (min_side)");
}

namespace {

void append_be32(std::vector<std::byte>& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) {
    out.push_back(static_cast<std::byte>(value >> shift));
  }
}

// A tEXt chunk behind the header (https://www.w3.org/TR/png-3/#11tEXt): the length of the data,
// type, data, CRC of type and data.
void insert_png_text(std::vector<std::byte>& png, const PngText& text) {
  require(!text.keyword.empty() && text.keyword.size() < 80 &&
              (text.keyword + text.text).find('\0') == std::string::npos,
          ErrorCode::kInvalidArgument, "PNG text '", printable(text.keyword),
          "': expected a keyword of 1 to 79 characters and no zero bytes");
  constexpr size_t kHeaderSize = 8 + 25;  // signature and IHDR chunk
  const std::string data = "tEXt" + text.keyword + '\0' + text.text;
  std::vector<std::byte> chunk;
  append_be32(chunk, static_cast<uint32_t>(data.size() - 4));
  for (const char c : data) chunk.push_back(static_cast<std::byte>(c));
  const auto* bytes = reinterpret_cast<const Bytef*>(data.data());
  append_be32(chunk, static_cast<uint32_t>(crc32(0, bytes, static_cast<uInt>(data.size()))));
  png.insert(png.begin() + kHeaderSize, chunk.begin(), chunk.end());
}

}  // namespace

std::vector<std::byte> encode_png(const Image& image, const std::vector<PngText>& texts) {
  check_image(image);
  cv::Mat bgr(static_cast<int>(image.height), static_cast<int>(image.width), CV_8UC3);
  for (int y = 0; y < bgr.rows; ++y) swap_red_blue(image.row(y), bgr.ptr(y), image.width);
  std::vector<uchar> file;
  cv::imencode(".png", bgr, file);
  const auto* bytes = reinterpret_cast<const std::byte*>(file.data());
  std::vector<std::byte> png(bytes, bytes + file.size());
  for (size_t i = texts.size(); i-- > 0;) insert_png_text(png, texts[i]);
  return png;
}

std::vector<std::byte> encode_jpeg(const Image& image, int quality) {
  check_image(image);
  require(quality >= 1 && quality <= 100, ErrorCode::kInvalidArgument, "JPEG quality ", quality,
          ": expected 1 to 100");
  return detail::encode_jpeg(image, quality);
}

}  // namespace vgen::data
