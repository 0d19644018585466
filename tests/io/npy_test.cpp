#include "vgen/io/npy.h"

#include <algorithm>
#include <catch2/catch.hpp>

#include "support/support.h"

using namespace vgen;
using Catch::Contains;

namespace {

io::FileBytes bytes_of(const std::string& text) {
  return {"x.npy", std::as_bytes(std::span(text.data(), text.size())), nullptr};
}

// A version 1.0 file with the given dict and data.
std::string npy(const std::string& dict, const std::string& data) {
  std::string out("\x93NUMPY\1\0", 8);
  out.push_back(static_cast<char>(dict.size() & 0xff));
  out.push_back(static_cast<char>(dict.size() >> 8));
  return out + dict + data;
}

std::string error_of_npy(const std::string& text) {
  return test::error_of([&] { io::parse_npy(bytes_of(text)); });
}

}  // namespace

TEST_CASE("npy: what is written reads back", "[io]") {
  const test::TempDir dir;
  const auto array = io::make_array<float>({2, 3}, {0, 1, 2, 3, 4, 5.5f});
  io::write_npy(dir / "a.npy", array);
  const io::Array back = io::read_npy(dir / "a.npy");
  CHECK(back.dtype == io::Dtype::kFloat32);
  CHECK(back.shape == std::vector<int64_t>{2, 3});
  CHECK(std::ranges::equal(back.as<float>(), array.as<float>()));
  io::write_npy(dir / "s.npy", io::make_array<int64_t>({}, {7}));
  CHECK(io::read_npy(dir / "s.npy").as<int64_t>()[0] == 7);
  CHECK(io::read_npy(dir / "s.npy").shape.empty());
  io::write_npy(dir / "e.npy", io::make_array<int64_t>({0, 3}, {}));
  CHECK(io::read_npy(dir / "e.npy").shape == std::vector<int64_t>{0, 3});
}

TEST_CASE("npy: Fortran order and big-endian become C order, little-endian", "[io]") {
  const std::string dict = "{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }\n";
  // Logical [[0, 1, 2], [10, 11, 12]], column by column.
  const std::string data("\0\0\0\x0a\0\1\0\x0b\0\2\0\x0c", 12);
  const std::string text = npy(dict, data);
  const io::Array array = io::parse_npy(bytes_of(text));
  const auto values = array.as<int16_t>();
  CHECK(std::vector<int16_t>(values.begin(), values.end()) ==
        std::vector<int16_t>{0, 1, 2, 10, 11, 12});
}

TEST_CASE("npy: a Python 2 shape and trailing commas are read", "[io]") {
  const std::string text = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (3L,)}\n", "abc");
  CHECK(io::parse_npy(bytes_of(text)).shape == std::vector<int64_t>{3});
  const std::string longer = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2,)}", "abc");
  CHECK(io::parse_npy(bytes_of(longer)).data.size() == 2);
  const std::string scalar = npy("{'descr': '|u1', 'fortran_order': False, 'shape': ()}", "a");
  CHECK(io::parse_npy(bytes_of(scalar)).shape.empty());
}

TEST_CASE("npy: bad files are refused with a reason", "[io]") {
  const auto with_shape = [](const std::string& shape) {
    return npy("{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + "}", "");
  };
  const auto with_descr = [](const std::string& descr) {
    return npy("{'descr': " + descr + ", 'fortran_order': False, 'shape': (1,)}", "abcdefgh");
  };
  CHECK_THAT(error_of_npy(""), Contains("x.npy: not a .npy file: it starts with ''"));
  CHECK_THAT(error_of_npy("PK\3\4...."), Contains("not a .npy file"));
  CHECK_THAT(error_of_npy(std::string("\x93NUMPY\1\0", 8)), Contains("cut off in its header"));
  CHECK_THAT(error_of_npy(std::string("\x93NUMPY\4\0ab", 10)), Contains("format version 4"));
  CHECK_THAT(error_of_npy(std::string("\x93NUMPY\1\0\xff\xff", 10)),
             Contains("header of 65535 bytes is declared in a file of 10"));
  CHECK_THAT(error_of_npy(with_descr("'|O'")), Contains("Python objects"));
  CHECK_THAT(error_of_npy(with_descr("[('a', '<f4')]")), Contains("structured arrays"));
  CHECK_THAT(error_of_npy(with_descr("'<U4'")), Contains("type '<U4' is not supported"));
  CHECK_THAT(error_of_npy(with_descr("'|V2'")), Contains("type '|V2' is not supported"));
  CHECK_THAT(error_of_npy(with_shape("(2,)")),
             Contains("needs 8 bytes, the file has 0: it is cut off"));
  CHECK_THAT(error_of_npy(with_shape("(-1,)")), Contains("expected an integer of at least 0"));
  CHECK_THAT(error_of_npy(with_shape("(3)")), Contains("not a tuple"));
  CHECK_THAT(error_of_npy(with_shape("(1, 1.5)")), Contains("'.5)}', expected ')'"));
  CHECK_THAT(error_of_npy(with_shape("(4294967296, 4294967296, 4294967296)")),
             Contains("more than 2^63 elements"));
  CHECK_THAT(error_of_npy(with_shape("(9223372036854775807,)")), Contains("more than 2^63 bytes"));
  CHECK_THAT(error_of_npy(with_shape("(99999999999999999999,)")), Contains("expected an integer"));
  CHECK_THAT(error_of_npy(npy("{'descr': '<f4'}", "")), Contains("lacks fortran_order"));
  CHECK_THAT(error_of_npy(npy("{'descr': '<f4', 'descr': '<f4'}", "")), Contains("occurs twice"));
  CHECK_THAT(error_of_npy(npy("{'evil': __import__('os')}", "")), Contains("unknown header field"));
  CHECK_THAT(error_of_npy(npy("{'fortran_order': 1}", "")), Contains("expected True or False"));
}

TEST_CASE("npy: types that NumPy lacks cannot be written", "[io]") {
  const test::TempDir dir;
  const auto array = io::make_array(io::Dtype::kBFloat16, {1},
                                    [](auto out) { std::ranges::fill(out, std::byte{0}); });
  CHECK_THAT(test::error_of([&] { io::write_npy(dir / "b.npy", array); }),
             Contains("b.npy: NumPy has no type for bfloat16"));
}

TEST_CASE("npz: arrays are streamed and read back", "[io]") {
  const test::TempDir dir;
  const auto a = io::make_array<uint8_t>({3}, {1, 2, 3});
  const auto b = io::make_array<double>({2}, {0.5, -1});
  {
    io::NpzWriter writer(dir / "x.npz");
    writer.add("b", b);
    writer.begin("arr_0", io::Dtype::kUInt8, {3});
    for (size_t i = 0; i < 3; ++i) writer.write(a.data.subspan(i, 1));
    writer.end();
    CHECK_THAT(test::error_of([&] { writer.add("b", b); }), Contains("two arrays are named 'b'"));
    writer.finish();
  }
  const io::NpzFile file(dir / "x.npz");
  CHECK(file.names() == std::vector<std::string>{"b", "arr_0"});
  CHECK(file.read("arr_0").as<uint8_t>()[2] == 3);
  CHECK(file.read("b").as<double>()[1] == -1);
  CHECK_THAT(test::error_of([&] { file.read("c"); }), Contains("no array 'c'; it has b, arr_0"));
}

TEST_CASE("npz: more members than a plain zip can count", "[io]") {
  const test::TempDir dir;
  const int count = 66000;  // above 65,535: ZIP64
  {
    io::NpzWriter writer(dir / "x.npz");
    for (int i = 0; i < count; ++i) {
      writer.add(std::to_string(i), io::make_array<int32_t>({1}, {i}));
    }
    writer.finish();
  }
  const io::NpzFile file(dir / "x.npz");
  REQUIRE(file.names().size() == count);
  CHECK(file.read("65999").as<int32_t>()[0] == 65999);
}

TEST_CASE("npz: an array beyond 4 GiB is streamed", "[io][slow]") {
  const test::TempDir dir;
  const int64_t rows = 24000;  // of 256x256x3 bytes: 4.7 GB
  std::vector<uint8_t> image(256 * 256 * 3);
  {
    io::NpzWriter writer(dir / "x.npz");
    writer.begin("arr_0", io::Dtype::kUInt8, {rows, 256, 256, 3});
    for (int64_t row = 0; row < rows; ++row) {
      image[0] = static_cast<uint8_t>(row);
      writer.write(std::as_bytes(std::span(image)));
    }
    writer.end();
    writer.add("after", io::make_array<int32_t>({1}, {7}));
    writer.finish();
  }
  const io::NpzFile file(dir / "x.npz");
  const io::Array images = file.read("arr_0");
  CHECK(images.shape == std::vector<int64_t>{rows, 256, 256, 3});
  for (const int64_t row : {int64_t{0}, int64_t{255}, rows - 1}) {
    CHECK(images.as<uint8_t>()[static_cast<size_t>(row) * image.size()] ==
          static_cast<uint8_t>(row));
  }
  CHECK(file.read("after").as<int32_t>()[0] == 7);
}

TEST_CASE("npz: files of NumPy, deflated and stored", "[io][golden]") {
  const io::NpzFile deflated(test::golden("npz/deflated.npz"));
  CHECK(deflated.names() == std::vector<std::string>{"a", "zeros", "empty", "scalar"});
  CHECK(deflated.read("a").as<float>()[5] == 5);
  CHECK(deflated.read("zeros").data.size() == 5000);
  CHECK(deflated.read("empty").shape == std::vector<int64_t>{0, 3});
  CHECK(deflated.read("scalar").as<int64_t>()[0] == 7);
  CHECK(deflated.describe("a").shape == std::vector<int64_t>{2, 3});
  const io::NpzFile stored(test::golden("npz/stored.npz"));
  CHECK(stored.read("arr").as<int32_t>()[1] == 1);
  CHECK(stored.read("arr").shape == std::vector<int64_t>{2, 3});
  CHECK(stored.read("flag").as<bool>()[0]);
  CHECK(stored.read("half").dtype == io::Dtype::kFloat16);
  CHECK(stored.read("c").dtype == io::Dtype::kComplex128);
  CHECK(stored.describe("arr").dtype == io::Dtype::kInt32);
}

TEST_CASE("npz: damaged and lying members are refused", "[io][golden]") {
  const std::string good = test::read_file(test::golden("npz/deflated.npz"));
  const auto read_changed = [&](size_t at, const std::string& bytes) {
    std::string text = good;
    text.replace(at, bytes.size(), bytes);
    return test::error_of([&] {
      const io::NpzFile file(
          io::FileBytes{"x.npz", std::as_bytes(std::span(text.data(), text.size())), nullptr});
      for (const std::string& name : file.names()) file.read(name);
    });
  };
  // The central directory's entry of zeros.npy; 16 checksum, 20 sizes.
  const size_t entry = good.rfind("PK\1\2", good.rfind("zeros.npy"));
  const auto le32 = [](uint32_t n) { return std::string(reinterpret_cast<const char*>(&n), 4); };
  CHECK_THAT(read_changed(entry + 16, le32(1)),
             Contains("x.npz: zeros.npy: zip: member 'zeros.npy' does not match its CRC-32"));
  CHECK_THAT(read_changed(entry + 24, le32(5127)), Contains("inflates to more than the declared"));
  CHECK_THAT(read_changed(entry + 24, le32(5129)), Contains("cannot be inflated to its declared"));
  CHECK_THAT(read_changed(entry + 24, le32(0x7fffffff)), Contains("deflated can hold"));
  CHECK_THAT(read_changed(entry + 10, std::string("\x0c\0", 2)), Contains("method 12"));
  CHECK_THAT(read_changed(entry + 8, std::string("\x01\0", 2)), Contains("is encrypted"));
  CHECK_THAT(read_changed(entry + 42, le32(0)), Contains("is called 'a.npy' in its own header"));
  CHECK_THAT(read_changed(entry + 42, le32(7)), Contains("has no header at byte 7"));
  const size_t end = good.rfind("PK\5\6");
  CHECK_THAT(read_changed(end + 10, std::string("\x09\0", 2)), Contains("the end record says 9"));
  CHECK_THAT(read_changed(end + 12, le32(1 << 30)), Contains("does not fit the file"));
  CHECK_THAT(read_changed(end + 4, std::string("\x01\0", 2)), Contains("several disks"));
}

TEST_CASE("npz: only arrays belong into it", "[io][golden]") {
  CHECK_THAT(test::error_of([] { io::NpzFile(test::golden("torch-save/valid/views.pt")); }),
             Contains("not a .npz: it holds 'views/data.pkl'"));
}
