#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <memory>

// jpeglib.h needs <cstdio> before it.
#include <jerror.h>
#include <jpeglib.h>

#include "vgen/core/error.h"
#include "vgen/data/detail/jpeg.h"

namespace vgen::data::detail {
namespace {

// A progressive file may repeat scans without end; real ones have about ten.
constexpr int kMaxScans = 500;

/// libjpeg reports errors through a callback that must not return: it jumps back to the setjmp of
/// the phase in work, whose frame holds no object with a destructor.
struct JpegErrors {
  jpeg_error_mgr manager;
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
  bool is_truncated;
};

JpegErrors& errors_of(j_common_ptr codec) { return *reinterpret_cast<JpegErrors*>(codec->err); }

void on_error(j_common_ptr codec) {
  JpegErrors& errors = errors_of(codec);
  errors.manager.format_message(codec, errors.message);
  std::longjmp(errors.jump, 1);
}

void on_message(j_common_ptr) {}
void on_warning(j_common_ptr, int) {}

boolean on_end_of_file(j_decompress_ptr decoder) {
  JpegErrors& errors = errors_of(reinterpret_cast<j_common_ptr>(decoder));
  errors.is_truncated = true;
  ERREXIT(decoder, JERR_INPUT_EOF);
  return FALSE;
}

void skip_bytes(j_decompress_ptr decoder, long count) {
  if (count <= 0) return;
  jpeg_source_mgr& source = *decoder->src;
  if (static_cast<size_t>(count) > source.bytes_in_buffer) on_end_of_file(decoder);
  source.next_input_byte += count;
  source.bytes_in_buffer -= static_cast<size_t>(count);
}

void do_nothing(j_decompress_ptr) {}

void limit_scans(j_common_ptr codec) {
  if (reinterpret_cast<j_decompress_ptr>(codec)->input_scan_number > kMaxScans) {
    ERREXIT(codec, JERR_BAD_PROGRESSION);
  }
}

void install_errors(JpegErrors& errors) {
  jpeg_std_error(&errors.manager);
  errors.manager.error_exit = on_error;
  errors.manager.output_message = on_message;
  errors.manager.emit_message = on_warning;
  errors.message[0] = '\0';
  errors.is_truncated = false;
}

class JpegDecoder {
 public:
  explicit JpegDecoder(std::span<const std::byte> file) : decoder_{}, errors_{}, source_{} {
    install_errors(errors_);
    decoder_.err = &errors_.manager;
    source_.init_source = do_nothing;
    source_.fill_input_buffer = on_end_of_file;
    source_.skip_input_data = skip_bytes;
    source_.resync_to_restart = jpeg_resync_to_restart;
    source_.term_source = do_nothing;
    source_.next_input_byte = reinterpret_cast<const JOCTET*>(file.data());
    source_.bytes_in_buffer = file.size();
    progress_.progress_monitor = limit_scans;
  }
  ~JpegDecoder() { jpeg_destroy_decompress(&decoder_); }
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;

  void read_header() {
    if (setjmp(errors_.jump)) fail();
    jpeg_create_decompress(&decoder_);
    decoder_.src = &source_;
    decoder_.progress = &progress_;
    jpeg_read_header(&decoder_, TRUE);
  }

  int64_t width() const { return decoder_.image_width; }
  int64_t height() const { return decoder_.image_height; }
  bool is_cmyk() const { return decoder_.num_components == 4; }

  /// Shrinks by 8, 4 or 2 (in the cosine domain) while both sides keep `needed_side` pixels.
  void shrink(int64_t needed_side) {
    if (setjmp(errors_.jump)) fail();
    for (const unsigned denominator : {8u, 4u, 2u, 1u}) {
      decoder_.scale_num = 1;
      decoder_.scale_denom = denominator;
      jpeg_calc_output_dimensions(&decoder_);
      if (decoder_.output_width >= needed_side && decoder_.output_height >= needed_side) break;
    }
  }

  int64_t output_width() const { return decoder_.output_width; }
  int64_t output_height() const { return decoder_.output_height; }

  /// `out`: height rows of width pixels of 3 bytes, 4 for CMYK.
  void read_pixels(uint8_t* out) {
    if (setjmp(errors_.jump)) fail();
    decoder_.out_color_space = is_cmyk() ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(&decoder_);
    const size_t stride = size_t{decoder_.output_width} * (is_cmyk() ? 4 : 3);
    while (decoder_.output_scanline < decoder_.output_height) {
      const JDIMENSION left = decoder_.output_height - decoder_.output_scanline;
      JSAMPROW rows[8];
      const JDIMENSION count = left < 8 ? left : 8;
      for (JDIMENSION i = 0; i < count; ++i) {
        rows[i] = out + (decoder_.output_scanline + i) * stride;
      }
      jpeg_read_scanlines(&decoder_, rows, count);
    }
    jpeg_finish_decompress(&decoder_);
  }

 private:
  [[noreturn]] void fail() {
    if (errors_.is_truncated) throw_error(ErrorCode::kDataCorrupt, "JPEG is truncated");
    throw_error(ErrorCode::kDataCorrupt, "JPEG is damaged: ", errors_.message);
  }

  jpeg_decompress_struct decoder_;
  JpegErrors errors_;
  jpeg_source_mgr source_;
  jpeg_progress_mgr progress_{};
};

/// PIL reads CMYK JPEGs as inverted (Adobe's habit) and converts with R = K' - C K' / 255, rounded.
void cmyk_to_rgb(const Pixels& cmyk, Pixels& rgb) {
  for (size_t i = 0, o = 0; i < cmyk.size(); i += 4, o += 3) {
    const int black = cmyk[i + 3];
    for (size_t c = 0; c < 3; ++c) {
      const int product = (255 - cmyk[i + c]) * black + 128;
      const int value = black - ((product + (product >> 8)) >> 8);
      rgb[o + c] = static_cast<uint8_t>(value < 0 ? 0 : value);
    }
  }
}

/// libjpeg's own memory destination grows by malloc and hands the block over.
struct JpegEncoder {
  jpeg_compress_struct encoder{};
  JpegErrors errors{};
  unsigned char* bytes = nullptr;
  unsigned long size = 0;

  JpegEncoder() {
    install_errors(errors);
    encoder.err = &errors.manager;
  }
  ~JpegEncoder() {
    jpeg_destroy_compress(&encoder);
    std::free(bytes);
  }

  void run(const Image& image, int quality) {
    if (setjmp(errors.jump)) {
      throw_error(ErrorCode::kInvalidArgument, "JPEG cannot be written: ", errors.message);
    }
    jpeg_create_compress(&encoder);
    jpeg_mem_dest(&encoder, &bytes, &size);
    encoder.image_width = static_cast<JDIMENSION>(image.width);
    encoder.image_height = static_cast<JDIMENSION>(image.height);
    encoder.input_components = 3;
    encoder.in_color_space = JCS_RGB;
    jpeg_set_defaults(&encoder);
    jpeg_set_quality(&encoder, quality, TRUE);
    jpeg_start_compress(&encoder, TRUE);
    while (encoder.next_scanline < encoder.image_height) {
      JSAMPROW row = const_cast<uint8_t*>(image.row(encoder.next_scanline));
      jpeg_write_scanlines(&encoder, &row, 1);
    }
    jpeg_finish_compress(&encoder);
  }
};

}  // namespace

Image decode_jpeg(std::span<const std::byte> file, int64_t max_pixels, int64_t needed_side) {
  JpegDecoder decoder(file);
  decoder.read_header();
  check_pixels(decoder.width(), decoder.height(), max_pixels);
  Image image{.width = decoder.width(), .height = decoder.height(), .rgb = {}};
  if (needed_side > 0) {
    decoder.shrink(needed_side);
    image.width = decoder.output_width();
    image.height = decoder.output_height();
  }
  const size_t pixels = static_cast<size_t>(image.width) * static_cast<size_t>(image.height);
  image.rgb.resize(pixels * 3);
  if (decoder.is_cmyk()) {
    Pixels cmyk(pixels * 4);
    decoder.read_pixels(cmyk.data());
    cmyk_to_rgb(cmyk, image.rgb);
  } else {
    decoder.read_pixels(image.rgb.data());
  }
  return image;
}

std::vector<std::byte> encode_jpeg(const Image& image, int quality) {
  JpegEncoder encoder;
  encoder.run(image, quality);
  const auto* bytes = reinterpret_cast<const std::byte*>(encoder.bytes);
  return {bytes, bytes + encoder.size};
}

}  // namespace vgen::data::detail
