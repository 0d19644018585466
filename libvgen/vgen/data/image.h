#pragma once
// Image files to 8-bit RGB and back. The pixels are those of PIL's Image.open(f).convert("RGB").
//
// The format is taken from the content, never from the name: JPEG, PNG, WebP, BMP, PPM/PGM/PBM,
// TIFF. Grey becomes three equal channels, palettes are expanded, alpha is dropped, CMYK is
// converted by PIL's formula, of 16 bits the high byte is kept, EXIF orientation is ignored. Three
// differences: PIL clips 16-bit grey to white, here its high byte counts too; the colour of a TIFF
// with alpha comes multiplied by it; a PNG without its end is refused. JPEG goes through
// libjpeg-turbo with the settings that PIL uses, PNG through libpng, the others through OpenCV. All
// functions may be called from any thread, and none prints: what a codec says of a damaged file is
// in the Error or is dropped.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vgen::data {

/// std::allocator that leaves new bytes as they are: pixels are written anyway.
template <class T>
struct PixelAllocator : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = PixelAllocator<U>;
  };
  template <class U>
  void construct(U* at) noexcept {
    ::new (static_cast<void*>(at)) U;
  }
  template <class U, class... Values>
  void construct(U* at, Values&&... values) {
    ::new (static_cast<void*>(at)) U(std::forward<Values>(values)...);
  }
};
using Pixels = std::vector<uint8_t, PixelAllocator<uint8_t>>;  ///< resize() leaves them unset

/// 8-bit RGB, rows from the top, no padding: value (y, x, c) is rgb[(y * width + x) * 3 + c].
struct Image {
  int64_t width = 0;
  int64_t height = 0;
  Pixels rgb;

  const uint8_t* row(int64_t y) const { return rgb.data() + y * width * 3; }
  uint8_t* row(int64_t y) { return rgb.data() + y * width * 3; }
};

/// What the header of an image file says.
struct ImageInfo {
  std::string format;  ///< "jpeg", "png", "webp", "bmp", "pnm", "tiff"
  int64_t width = 0;
  int64_t height = 0;
};

/// Pixels above which an image is refused before memory is taken: the limit of PIL.
inline constexpr int64_t kMaxPixels = 178'956'970;

/// Reads the header alone. Throws Error(kDataCorrupt) for what is no image: "not an image: begins
/// with 'hello'; expected JPEG, PNG, WebP, BMP, PNM or TIFF".
ImageInfo probe_image(std::span<const std::byte> file);

/// Decodes a whole file. Throws Error(kDataCorrupt): not an image, truncated, damaged, or more than
/// `max_pixels` pixels. A JPEG with damaged entropy data but all its blocks is accepted, as by PIL.
///
/// `needed_side` > 0: a JPEG may come shrunk by 2, 4 or 8 as long as both sides keep that many
/// pixels. Several times faster for large photos, and not what PIL gives.
Image decode_image(std::span<const std::byte> file, int64_t max_pixels = kMaxPixels,
                   int64_t needed_side = 0);

/// Throws Error(kDataCorrupt) when the shorter side has less than `min_side` pixels.
void check_min_side(int64_t width, int64_t height, int64_t min_side);

/// A text chunk of a PNG: PIL shows it as image.text[keyword].
struct PngText {
  std::string keyword;  ///< Latin-1, 1 to 79 characters: "parameters"
  std::string text;     ///< Latin-1, no zero bytes
};

/// PNG, RGB, 8 bit. Throws Error(kInvalidArgument) for an empty image.
std::vector<std::byte> encode_png(const Image& image, const std::vector<PngText>& texts = {});

/// JPEG, 4:2:0. quality in [1, 100].
std::vector<std::byte> encode_jpeg(const Image& image, int quality);

/// True for the extensions that a dataset takes as images, in any case: jpg jpeg png ppm bmp pgm
/// tif tiff webp (torchvision's list).
bool has_image_extension(std::string_view name);

}  // namespace vgen::data
