#include "vgen/data/image.h"

#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>

#include "data/data_support.h"
#include "support/support.h"
#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/data/detail/quiet_cerr.h"
#include "vgen/data/resample.h"
#include "vgen/data/transforms.h"

namespace vgen::data {
namespace {

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

Image decode(const std::string& file) { return decode_image(as_bytes(file)); }
std::string decode_error(const std::string& file, int64_t max_pixels = kMaxPixels) {
  return test::error_of([&] { decode_image(as_bytes(file), max_pixels); });
}

std::string small_file(const std::string& name) {
  return test::read_file(test::golden("pil_photos/" + name));
}

/// The 16-bit numbers of a PNG header etc. in network order.
std::string big32(uint32_t value) {
  std::string out;
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<char>(value >> shift));
  return out;
}

Filter filter_of(const std::string& name) {
  return name == "box" ? Filter::kBox : name == "bicubic" ? Filter::kBicubic : Filter::kLanczos;
}

}  // namespace

TEST_CASE("image: decoding, resizing and crops equal Pillow's to the last bit", "[data][golden]") {
  std::ifstream cases(test::golden("pil_photos/cases.txt"));
  std::string line, file, decoded_file;
  Image image;
  int count = 0;
  while (std::getline(cases, line)) {
    std::istringstream words(line);
    std::string kind, filter, hash;
    int64_t width = 0, height = 0;
    words >> kind >> file;
    if (file != decoded_file) image = decode(test::read_file(test::project_path(file)));
    decoded_file = file;
    Image result = image;
    if (kind == "decode") {
      words >> width >> height >> hash;
      CHECK(image.width == width);
      CHECK(image.height == height);
    } else if (kind == "resize") {
      words >> filter >> width >> height >> hash;
      result = resize(image, width, height, filter_of(filter));
    } else {
      words >> width >> hash;
      result = kind == "center_crop" ? center_crop(image, width) : var_center_crop(image, width);
    }
    INFO(line);
    CHECK(test::hash_of(result) == hash);
    ++count;
  }
  CHECK(count == 144);
}

TEST_CASE("image: the format comes from the content", "[data]") {
  CHECK(probe_image(as_bytes(small_file("png_named.jpg"))).format == "png");
  for (const auto& [file, format] : {std::pair{"cmyk.jpg", "jpeg"},
                                     {"progressive.jpg", "jpeg"},
                                     {"palette.png", "png"},
                                     {"interlaced.png", "png"},
                                     {"lossy.webp", "webp"},
                                     {"lossless_alpha.webp", "webp"},
                                     {"rgb.bmp", "bmp"},
                                     {"rgb.ppm", "pnm"},
                                     {"lzw.tif", "tiff"}}) {
    const ImageInfo info = probe_image(as_bytes(small_file(file)));
    INFO(file);
    CHECK(info.format == format);
    CHECK(info.width == 41);
    CHECK(info.height == 31);
  }
}

TEST_CASE("image: of 16-bit grey the high byte is kept", "[data]") {
  const Image image = decode(std::string("P5\n2 1\n65535\n\x12\x34\xff\x00", 17));
  CHECK(image.rgb == Pixels{0x12, 0x12, 0x12, 0xff, 0xff, 0xff});
}

TEST_CASE("image: what is no image is told with its first bytes", "[data]") {
  CHECK(decode_error("") == "not an image: the file is empty");
  CHECK(decode_error("<html>404</html>") ==
        "not an image: begins with '<html>404</html>'; expected JPEG, PNG, WebP, BMP, PNM or TIFF");
  CHECK_THAT(decode_error(std::string("\0\x01\x02", 3)), Catch::Contains("not an image"));
}

TEST_CASE("image: damaged files are errors, never pictures", "[data]") {
  const std::string jpeg = small_file("rgb_420.jpg");
  for (const size_t size : {jpeg.size() - 1, jpeg.size() / 2, jpeg.size() - 20}) {
    CHECK(decode_error(jpeg.substr(0, size)) == "JPEG is truncated");
  }
  CHECK(decode_error(jpeg.substr(0, 20)) == "jpeg header is damaged or truncated");
  const std::string png = small_file("palette.png");
  for (const size_t size : {png.size() - 1, png.size() / 2, png.find("IDAT") + 6}) {
    CHECK(decode_error(png.substr(0, size)) == "PNG is truncated");
  }
  std::string changed = png;
  changed[png.find("IDAT") + 20] ^= 1;
  CHECK_THAT(decode_error(changed), Catch::StartsWith("PNG is damaged: IDAT: "));
  for (const char* name : {"lossy.webp", "rgb.bmp", "rgb.ppm", "lzw.tif"}) {
    const std::string file = small_file(name);
    INFO(name);
    CHECK_THAT(decode_error(file.substr(0, file.size() / 2)), Catch::Contains("damaged"));
  }
  std::string no_table = jpeg;  // turns the marker of the first quantisation table into a comment
  no_table[no_table.find("\xff\xdb") + 1] = '\xfe';
  CHECK_THAT(decode_error(no_table), Catch::StartsWith("JPEG is damaged: "));
}

TEST_CASE("image: any cut or changed byte is an error or an image", "[data]") {
  for (const char* name : {"cmyk.jpg", "progressive.jpg", "palette.png", "interlaced.png",
                           "lossless_alpha.webp", "palette.bmp", "grey.pgm", "lzw.tif"}) {
    const std::string file = small_file(name);
    for (size_t i = 0; i < file.size(); i += 7) {
      std::string changed = file;
      changed[i] = static_cast<char>(changed[i] ^ (1 << (i % 8)));
      for (const std::string& bytes : {changed, file.substr(0, i)}) {
        try {
          const Image image = decode_image(as_bytes(bytes), 1 << 20);
          CHECK(image.rgb.size() == static_cast<size_t>(image.width * image.height * 3));
        } catch (const Error& error) {
          CHECK(error.code() == ErrorCode::kDataCorrupt);
        }
      }
    }
  }
}

TEST_CASE("image: of std::cerr only what a codec writes is lost", "[data]") {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    {
      const detail::QuietCerr quiet;
      std::cerr << "lost " << 1 << std::endl;
      std::thread([] { std::cerr << "another thread " << 2 << '\n'; }).join();
    }
    std::cerr << "afterwards" << std::endl;
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[256];
  for (ssize_t size = 0; (size = read(ends[0], buffer, sizeof(buffer))) > 0;) {
    text.append(buffer, static_cast<size_t>(size));
  }
  close(ends[0]);
  REQUIRE(waitpid(child, nullptr, 0) == child);
  CHECK(text == "another thread 2\nafterwards\n");
}

TEST_CASE("image: huge declared sizes are refused before memory is taken", "[data]") {
  const std::string png = "\x89PNG\r\n\x1a\n" + big32(13) + "IHDR" + big32(2000000000) +
                          big32(2000000000) + std::string(5, '\2') + std::string(20, '\0');
  CHECK(decode_error(png) ==
        "image of 2000000000 x 2000000000 pixels is over the limit of 178,956,970 pixels "
        "(max_pixels)");
  CHECK_THAT(decode_error("P6 99999 99999 255 x"), Catch::Contains("over the limit"));
  CHECK_THAT(decode_error("P6 0 5 255 x"), Catch::Contains("image size is 0 x 5"));
  std::string jpeg = small_file("rgb_444.jpg");
  const size_t frame = jpeg.find("\xff\xc0");
  jpeg.replace(frame + 5, 4, "\xff\xdc\xff\xdc");
  CHECK_THAT(decode_error(jpeg), Catch::Contains("image of 65500 x 65500 pixels is over"));
  CHECK_THAT(decode_error(small_file("rgb.bmp"), 1270),
             Catch::Contains("image of 41 x 31 pixels is over the limit of 1,270"));
}

TEST_CASE("image: PNG keeps every pixel, JPEG nearly", "[data]") {
  const Image image = test::make_picture(19, 11, 3);
  const Image again = decode(test::png_bytes(image));
  CHECK(again.width == 19);
  CHECK(again.rgb == image.rgb);
  const Image jpeg = decode(test::jpeg_bytes(decode(small_file("rgb.ppm"))));
  CHECK(jpeg.height == 31);
  CHECK_THAT(test::error_of([] { encode_png({}); }), Catch::Contains("at least 1 x 1"));
  CHECK_THAT(test::error_of([&] { encode_jpeg(image, 0); }), Catch::Contains("expected 1 to 100"));
}

TEST_CASE("image: a JPEG may be shrunk while it is decoded, never below what is needed", "[data]") {
  const std::string photo = test::read_file(test::project_path("data/photos/coffee/coffee.jpg"));
  const auto size_for = [&](int64_t needed) {
    const Image image = decode_image(as_bytes(photo), kMaxPixels, needed);
    CHECK(image.rgb.size() == static_cast<size_t>(image.width * image.height * 3));
    return std::pair{image.width, image.height};
  };
  CHECK(size_for(0) == std::pair<int64_t, int64_t>{600, 400});
  CHECK(size_for(201) == std::pair<int64_t, int64_t>{600, 400});
  CHECK(size_for(200) == std::pair<int64_t, int64_t>{300, 200});
  CHECK(size_for(100) == std::pair<int64_t, int64_t>{150, 100});
  CHECK(size_for(1) == std::pair<int64_t, int64_t>{75, 50});
  CHECK(size_for(1000) == std::pair<int64_t, int64_t>{600, 400});
  // Nearly the picture that box halving gives.
  const Image shrunk = decode_image(as_bytes(photo), kMaxPixels, 200);
  const Image halved = resize(decode_image(as_bytes(photo)), 300, 200, Filter::kBox);
  int64_t difference = 0;
  for (size_t i = 0; i < halved.rgb.size(); ++i) {
    difference += std::abs(int{shrunk.rgb[i]} - int{halved.rgb[i]});
  }
  CHECK(difference / static_cast<double>(halved.rgb.size()) < 2);
  CHECK(decode_image(as_bytes(small_file("png_named.jpg")), kMaxPixels, 4).width == 41);
}

TEST_CASE("image: extensions of images", "[data]") {
  for (const char* name : {"a.jpg", "a.b.JPEG", "x.Png", "w.webp", "t.TIF"}) {
    CHECK(has_image_extension(name));
  }
  for (const char* name : {"jpg", "a.txt", "a.jpg.txt", "a.", ""}) {
    CHECK_FALSE(has_image_extension(name));
  }
}

}  // namespace vgen::data
