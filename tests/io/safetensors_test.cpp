#include "vgen/io/safetensors.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <fstream>
#include <memory>

#include "support/support.h"
#include "vgen/io/state_dict.h"

using namespace vgen;
using Catch::Contains;

namespace {

std::string make_file(const std::string& header, const std::string& data = "") {
  std::string out;
  const uint64_t size = header.size();
  out.append(reinterpret_cast<const char*>(&size), 8);
  return out + header + data;
}

/// Owns its bytes: the tensors borrow them.
io::FileBytes bytes_of(const std::string& text) {
  const auto owned = std::make_shared<const std::string>(text);
  return {"x.safetensors", std::as_bytes(std::span(owned->data(), owned->size())), owned};
}

io::Safetensors parse(const std::string& text) { return io::parse_safetensors(bytes_of(text)); }

// The complaint about a file with this header and `data_size` bytes of data.
std::string complaint(const std::string& header, size_t data_size = 0) {
  return test::error_of([&] { parse(make_file(header, std::string(data_size, 'x'))); });
}

/// The line of the system's list of this process's mappings that an address lies in.
std::string mapping_of(const void* address) {
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (std::getline(maps, line)) {  // "7f12a000-7f12b000 r--p 00000000 08:01 1234  /tmp/x"
    const auto place = reinterpret_cast<uintptr_t>(address);
    const size_t dash = line.find('-');
    if (std::stoull(line.substr(0, dash), nullptr, 16) <= place &&
        place < std::stoull(line.substr(dash + 1), nullptr, 16)) {
      return line;
    }
  }
  return "";
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

}  // namespace

TEST_CASE("safetensors: what is written reads back, sorted and aligned", "[io]") {
  const test::TempDir dir;
  const std::string path = dir / "a.safetensors";
  io::write_safetensors(
      path,
      {{"flag", io::make_array(io::Dtype::kBool, {1}, [](auto out) { out[0] = std::byte{1}; })},
       {"w", io::make_array<float>({2, 2}, {1, 2, 3, 4})},
       {"step", io::make_array<int64_t>({}, {7})},
       {"b", io::make_array<float>({1}, {5})},
       {"none", io::make_array<float>({0, 3}, {})}},
      {{"format", "pt"}, {"note", "caf\xc3\xa9 \"q\""}});
  const io::Safetensors file = io::read_safetensors(path);
  std::vector<std::string> names;
  for (const auto& tensor : file.tensors) names.push_back(tensor.name);
  CHECK(names == std::vector<std::string>{"step", "b", "none", "w", "flag"});
  CHECK(file.find("w")->shape == std::vector<int64_t>{2, 2});
  CHECK(file.find("w")->as<float>()[3] == 4);
  CHECK(file.find("step")->as<int64_t>()[0] == 7);
  CHECK(file.find("nobody") == nullptr);
  CHECK(file.metadata.at("note") == "caf\xc3\xa9 \"q\"");
  const std::string raw = test::read_file(path);
  uint64_t header_size = 0;
  std::memcpy(&header_size, raw.data(), 8);
  CHECK(header_size % 8 == 0);
  CHECK(raw.substr(8, 30) == R"({"__metadata__":{"format":"pt")");
}

TEST_CASE("safetensors: the tensors outlive the reader", "[io]") {
  const test::TempDir dir;
  io::write_safetensors(dir / "a.safetensors", {{"w", io::make_array<float>({1}, {1.5f})}});
  const io::Array array = io::read_safetensors(dir / "a.safetensors").tensors[0].array;
  CHECK(array.as<float>()[0] == 1.5f);
}

TEST_CASE("safetensors: tensors lie in the mapped file, none is copied", "[io]") {
  const test::TempDir dir;
  const std::string path = dir / "a.safetensors";
  io::write_safetensors(
      path, {{"w", io::make_array<float>({3, 2}, {1, 2, 3, 4, 5, 6})},
             {"step", io::make_array<int64_t>({}, {7})},
             {"half", io::make_array(io::Dtype::kBFloat16, {3},
                                     [](auto out) { std::ranges::fill(out, std::byte{1}); })},
             {"flag", io::make_array(io::Dtype::kBool, {1}, [](auto out) { out[0] = {}; })}});
  const auto check_within = [](const io::Array& array, std::span<const std::byte> bytes) {
    CHECK(array.data.data() >= bytes.data());
    CHECK(array.data.data() + array.data.size() <= bytes.data() + bytes.size());
  };
  const io::FileBytes mapped = io::map_file(path);
  const io::Safetensors parsed = io::parse_safetensors(mapped);
  REQUIRE(parsed.tensors.size() == 4);
  for (const auto& [name, array] : parsed.tensors) {
    INFO(name);
    check_within(array, mapped.bytes);
    CHECK(array.owner == mapped.owner);
  }
  // The way of every command that takes weights.
  const io::StateDict state = io::load_state_dict(path);
  REQUIRE(state.tensors.size() == 4);
  REQUIRE(state.mappings.size() == 1);
  for (const auto& [name, array] : state.tensors) {
    INFO(name);
    check_within(array, state.mappings[0]);
  }
  CHECK(state.find("w")->as<float>()[5] == 6);

  CHECK_THAT(mapping_of(state.mappings[0].data()), Catch::EndsWith("/a.safetensors"));
  const std::string copy = test::read_file(path);
  CHECK_THAT(mapping_of(copy.data()), !Catch::EndsWith("/a.safetensors"));
}

TEST_CASE("safetensors: legal oddities are accepted", "[io]") {
  CHECK(parse(make_file("{}")).tensors.empty());
  CHECK(parse(make_file("{} \n\t ")).tensors.empty());
  CHECK(parse(make_file(R"({"__metadata__":{}})")).tensors.empty());
  // Unknown fields, rank 0, zero-size tensors in the middle.
  const auto file = parse(make_file(
      R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"later":{"x":[1]}},)" +
          entry("z", "F32", "[0,7]", "[1,1]") + "," + entry("b", "U8", "[2]", "[1,3]") + "}",
      "abc"));
  REQUIRE(file.tensors.size() == 3);
  CHECK(file.find("b")->as<uint8_t>()[1] == 'c');
}

TEST_CASE("safetensors: unaligned tensors are copied, odd bools normalised", "[io]") {
  const auto file = parse(make_file(
      "{" + entry("b", "BOOL", "[3]", "[0,3]") + "," + entry("f", "F32", "[1]", "[3,7]") + "}",
      std::string("\2\0\1\0\0\x80\x3f", 7)));
  CHECK(file.find("f")->as<float>()[0] == 1.0f);
  CHECK(reinterpret_cast<uintptr_t>(file.find("f")->data.data()) % 4 == 0);
  const auto flags = file.find("b")->data;
  CHECK(std::vector<std::byte>(flags.begin(), flags.end()) ==
        std::vector<std::byte>{std::byte{1}, std::byte{0}, std::byte{1}});
}

TEST_CASE("safetensors: every dtype of the format", "[io]") {
  for (const std::string dtype : {"BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"}) {
    CHECK(parse(make_file("{" + entry("t", dtype, "[2]", "[0,2]") + "}", std::string(2, '\1')))
              .tensors.size() == 1);
  }
  for (const std::string dtype : {"U16", "I16", "F16", "BF16"}) {
    CHECK(parse(make_file("{" + entry("t", dtype, "[2]", "[0,4]") + "}", "abcd")).tensors.size() ==
          1);
  }
  CHECK(parse(make_file("{" + entry("t", "C64", "[1]", "[0,8]") + "}", "abcdefgh"))
            .find("t")
            ->dtype == io::Dtype::kComplex64);
  for (const std::string dtype : {"F4", "F6_E2M3", "F8_E8M0", "F8_E4M3FNUZ", "f32", ""}) {
    CHECK_THAT(complaint("{" + entry("t", dtype, "[2]", "[0,2]") + "}", 2),
               Contains("tensor 't': dtype '" + dtype + "' is not supported"));
  }
}

TEST_CASE("safetensors: bad headers are refused with a reason", "[io]") {
  CHECK_THAT(test::error_of([] { parse(""); }), Contains("x.safetensors: the file has 0 bytes"));
  CHECK_THAT(test::error_of([] { parse("<html><body>404</body></html>"); }),
             Contains("at most 100000000 are allowed"));
  CHECK_THAT(test::error_of([] { parse(make_file("{}").substr(0, 9)); }),
             Contains("header of 2 bytes is declared, but the file ends after 1"));
  CHECK_THAT(complaint(""), Contains("starts with '', expected '{'"));
  CHECK_THAT(complaint(" {}"), Contains("starts with ' ', expected '{'"));
  CHECK_THAT(complaint("[]"), Contains("starts with '[', expected '{'"));
  CHECK_THAT(complaint("{\"a\":"), Contains("not valid JSON"));
  CHECK_THAT(complaint("{}x"), Contains("not valid JSON"));
  CHECK_THAT(complaint("{\"\xff\":1}"), Contains("not valid JSON"));
  CHECK_THAT(complaint(R"({"a":1})"), Contains("tensor 'a': is an integer, expected an object"));
  CHECK_THAT(complaint(R"({"__metadata__":{"a":1}})"),
             Contains("__metadata__: 'a' is an integer, expected a string"));
  CHECK_THAT(complaint(R"({"__metadata__":[]})"), Contains("is an array, expected an object"));
  CHECK_THAT(complaint(R"({"a":{"dtype":"U8","shape":[1]}})"), Contains("missing 'data_offsets'"));
  CHECK_THAT(complaint(R"({"a":{"dtype":8,"shape":[1]}})"),
             Contains("'dtype' is an integer, expected a string"));
  std::string deep = "{\"a\":";
  for (int i = 0; i < 100; ++i) deep += "[";
  CHECK_THAT(complaint(deep), Contains("nested deeper than 64"));
}

TEST_CASE("safetensors: bad shapes and offsets are refused with a reason", "[io]") {
  const auto one = [](const std::string& shape, const std::string& offsets, size_t data_size) {
    return complaint("{" + entry("t", "F32", shape, offsets) + "}", data_size);
  };
  CHECK_THAT(one("[-1]", "[0,4]", 4), Contains("'shape' holds -1"));
  CHECK_THAT(one("[1.5]", "[0,6]", 6), Contains("'shape' holds a fraction"));
  CHECK_THAT(one("[18446744073709551615]", "[0,4]", 4), Contains("an integer above 2^63 - 1"));
  CHECK_THAT(one("[18446744073709551616]", "[0,4]", 4), Contains("does not fit 64 bits"));
  CHECK_THAT(one("[4294967296,4294967296,0]", "[0,4]", 4), Contains("needs 0"));
  CHECK_THAT(one("[4294967296,4294967296]", "[0,4]", 4), Contains("more than 2^63 elements"));
  CHECK_THAT(one("[1]", "[0]", 4), Contains("'data_offsets' has 1 numbers"));
  CHECK_THAT(one("[1]", "[4,0]", 4), Contains("ends at 0, before its begin 4"));
  CHECK_THAT(one("[1]", "[0,3]", 4), Contains("span 3 bytes, but F32 [1] needs 4"));
  CHECK_THAT(one("[1]", "[4,8]", 8), Contains("begins at byte 4 of the data, expected 0 (a gap)"));
  CHECK_THAT(one("[1]", "[0,4]", 3), Contains("the file has 3 (it is cut off)"));
  CHECK_THAT(one("[1]", "[0,4]", 5), Contains("the file has 5 (something follows them)"));
  CHECK_THAT(
      complaint(
          "{" + entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[1,3]") + "}", 3),
      Contains("tensor 'b' begins at byte 1 of the data, expected 2 (it overlaps"));
  CHECK_THAT(
      complaint(
          "{" + entry("a", "U8", "[1]", "[0,1]") + "," + entry("a", "U8", "[1]", "[1,2]") + "}", 2),
      Contains("the name 'a' occurs twice"));
}

TEST_CASE("safetensors: what cannot be written is refused before the file is touched", "[io]") {
  const test::TempDir dir;
  const std::string path = dir / "a.safetensors";
  const auto one = io::make_array<float>({1}, {1});
  CHECK_THAT(test::error_of([&] {
               io::write_safetensors(path, {{"a", one}, {"a", one}});
             }),
             Contains("two tensors are named 'a'"));
  CHECK_THAT(test::error_of([&] {
               io::write_safetensors(path, {{"__metadata__", one}});
             }),
             Contains("no tensor can be named __metadata__"));
  CHECK_THAT(test::error_of([&] {
               io::write_safetensors(path, {{"\xff", one}});
             }),
             Contains("a.safetensors: the name '?' is not UTF-8"));
  const auto complex = io::make_array(io::Dtype::kComplex128, {1},
                                      [](auto out) { std::ranges::fill(out, std::byte{0}); });
  CHECK_THAT(test::error_of([&] {
               io::write_safetensors(path, {{"c", complex}});
             }),
             Contains("safetensors has no dtype for complex128"));
  CHECK_THAT(test::error_of([&] { io::read_safetensors(path); }), Contains("no such file"));
}

TEST_CASE("safetensors: the index of a sharded checkpoint", "[io]") {
  const auto parse_index = [](const std::string& text) {
    return io::parse_shard_index(
        {"model.safetensors.index.json", std::as_bytes(std::span(text.data(), text.size())), {}});
  };
  const auto shards = parse_index(
      R"({"metadata":{"total_size":8},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors",)"
      R"("c":"m-1.safetensors"}})");
  CHECK(shards.at("m-1.safetensors") == std::vector<std::string>{"a", "c"});
  for (const std::string name : {"../x", "/etc/passwd", "..", ".", "", "a\\\\b", "a\\u0000b"}) {
    CHECK_THAT(test::error_of([&] { parse_index(R"({"weight_map":{"a":")" + name + "\"}}"); }),
               Contains("expected the plain name of a file beside the index"));
  }
  CHECK_THAT(test::error_of([&] { parse_index("{}"); }), Contains("missing 'weight_map'"));
  CHECK_THAT(test::error_of([&] { parse_index(R"({"weight_map":{"a":1}})"); }),
             Contains("tensor 'a' is mapped to an integer"));
}
