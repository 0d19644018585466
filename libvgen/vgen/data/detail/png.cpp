#include "vgen/data/detail/png.h"

#include <png.h>

#include <csetjmp>
#include <cstring>
#include <new>

#include "vgen/core/error.h"
#include "vgen/core/strings.h"

namespace vgen::data::detail {
namespace {

/// libpng reports errors through a callback that must not return: it jumps back to the setjmp of
/// the phase in work, whose frame holds no object with a destructor.
class PngDecoder {
 public:
  explicit PngDecoder(std::span<const std::byte> file)
      : rest_(file),
        png_(png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, on_warning)) {
    if (png_ != nullptr) info_ = png_create_info_struct(png_);
    if (info_ != nullptr) return;
    png_destroy_read_struct(&png_, nullptr, nullptr);
    throw std::bad_alloc();
  }
  ~PngDecoder() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngDecoder(const PngDecoder&) = delete;
  PngDecoder& operator=(const PngDecoder&) = delete;

  /// Asks for RGB of 8 bits: palettes and small greys expanded, high bytes kept, alpha dropped.
  void read_header() {
    if (setjmp(jump_)) fail();
    png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // the caller limits the pixels
    png_set_read_fn(png_, this, on_read);
    png_read_info(png_, info_);
    png_set_expand(png_);
    png_set_strip_16(png_);
    png_set_strip_alpha(png_);
    png_set_gray_to_rgb(png_);
    passes_ = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
  }

  int64_t width() const { return png_get_image_width(png_, info_); }
  int64_t height() const { return png_get_image_height(png_, info_); }
  size_t row_bytes() const { return png_get_rowbytes(png_, info_); }

  /// `out`: height rows of row_bytes(). An interlaced image fills the same rows again and again.
  void read_pixels(uint8_t* out) {
    if (setjmp(jump_)) fail();
    for (int pass = 0; pass < passes_; ++pass) read_pass(out);
    png_read_end(png_, nullptr);
  }

 private:
  static PngDecoder& of(png_structp png) {
    return *static_cast<PngDecoder*>(png_get_error_ptr(png));
  }

  [[noreturn]] static void on_error(png_structp png, png_const_charp message) {
    PngDecoder& decoder = of(png);
    std::strncpy(decoder.message_, message, sizeof(decoder.message_) - 1);
    std::longjmp(decoder.jump_, 1);
  }

  static void on_warning(png_structp, png_const_charp) {}

  static void on_read(png_structp png, png_bytep out, size_t size) {
    PngDecoder& decoder = of(png);
    if (size > decoder.rest_.size()) {
      decoder.is_truncated_ = true;
      png_error(png, "end of file");
    }
    std::memcpy(out, decoder.rest_.data(), size);
    decoder.rest_ = decoder.rest_.subspan(size);
  }

  void read_pass(uint8_t* out) {
    const size_t stride = row_bytes();
    const png_uint_32 rows = png_get_image_height(png_, info_);
    for (png_uint_32 y = 0; y < rows; ++y) png_read_row(png_, out + y * stride, nullptr);
  }

  [[noreturn]] void fail() {
    if (is_truncated_) throw_error(ErrorCode::kDataCorrupt, "PNG is truncated");
    throw_error(ErrorCode::kDataCorrupt, "PNG is damaged: ", printable(message_));
  }

  std::span<const std::byte> rest_;  ///< not read yet
  std::jmp_buf jump_;
  char message_[128] = "";
  bool is_truncated_ = false;
  int passes_ = 1;
  png_structp png_;
  png_infop info_ = nullptr;
};

}  // namespace

Image decode_png(std::span<const std::byte> file) {
  PngDecoder decoder(file);
  decoder.read_header();
  Image image{.width = decoder.width(), .height = decoder.height(), .rgb = {}};
  require(decoder.row_bytes() == static_cast<size_t>(image.width) * 3, ErrorCode::kDataCorrupt,
          "PNG is damaged: rows of ", decoder.row_bytes(), " bytes for ", image.width,
          " pixels, expected 3 bytes each");
  image.rgb.resize(decoder.row_bytes() * static_cast<size_t>(image.height));
  decoder.read_pixels(image.rgb.data());
  return image;
}

}  // namespace vgen::data::detail
