#include "vgen/io/json.h"

#include <catch2/catch.hpp>
#include <limits>

#include "support/support.h"

using namespace vgen;
using Catch::Contains;
using io::Json;

namespace {
std::string complaint(const std::string& text, const io::JsonLimits& limits = {}) {
  return test::error_of([&] { io::parse_json(text, limits); });
}
}  // namespace

TEST_CASE("json: values keep their kind, order and all 64 bits", "[io]") {
  const Json root = io::parse_json(
      R"({"z":[1,-9223372036854775808,9223372036854775807],"a":{"t":true,"n":null},"f":1e-3,"s":"é\n"})");
  REQUIRE(root.members.size() == 4);
  CHECK(root.members[0].first == "z");
  CHECK(root.get_array("z").items[1].integer == std::numeric_limits<int64_t>::min());
  CHECK(root.get_array("z").items[2].integer == std::numeric_limits<int64_t>::max());
  CHECK(root.get_object("a").get_bool("t"));
  CHECK(root.get_object("a").find("n")->kind == Json::Kind::kNull);
  CHECK(root.get_float("f") == 0.001);
  CHECK(root.get_string("s") == "\xc3\xa9\n");
  CHECK(root.find("nobody") == nullptr);
  CHECK(io::parse_json(io::dump_json(root)).get_string("s") == "\xc3\xa9\n");
  CHECK(io::parse_json(" 7 ").integer == 7);
  const Json most = io::parse_json("18446744073709551615");
  CHECK(most.kind == Json::Kind::kUnsigned);
  CHECK(io::dump_json(most) == "18446744073709551615");
}

TEST_CASE("json: text out", "[io]") {
  Json root = Json::object();
  root.set("a", Json::array()).add(Json::number(int64_t{1}));
  root.set("b", Json::object());
  root.set("c", Json::number(0.5));
  root.set("d", Json::string("q\"\x01\xff"));
  root.set("e", Json::number(std::numeric_limits<double>::infinity()));
  CHECK(io::dump_json(root) ==
        "{\"a\":[1],\"b\":{},\"c\":0.5,\"d\":\"q\\\"\\u0001\xef\xbf\xbd\",\"e\":null}");
  CHECK(io::dump_json(io::parse_json(R"({"a":[[1,2],{"b":true}]})"), 2) ==
        "{\n  \"a\": [\n    [1, 2],\n    {\n      \"b\": true\n    }\n  ]\n}");
  CHECK(io::dump_json(Json::unsigned_number(7)) == "7");
  CHECK(io::dump_json(Json::unsigned_number(uint64_t{1} << 63)) == "9223372036854775808");
}

TEST_CASE("json: text in ASCII alone reads back the same", "[io]") {
  const std::string text = "{\"n\xc3\xa9\":\"\xe7\x8a\xac \xf0\x9f\x90\x95\"}";  // in UTF-8
  const std::string ascii = io::dump_json(io::parse_json(text), -1, /*is_ascii=*/true);
  CHECK(ascii == R"({"n\u00e9":"\u72ac \ud83d\udc15"})");
  CHECK(io::dump_json(io::parse_json(ascii)) == text);
}

TEST_CASE("json: bad text is refused with the byte", "[io]") {
  CHECK_THAT(complaint(""), Contains("not valid JSON at byte"));
  CHECK_THAT(complaint("{\"a\":1,}"), Contains("not valid JSON at byte 8"));
  CHECK_THAT(complaint("[1] 2"), Contains("not valid JSON"));
  CHECK_THAT(complaint("// x\n1"), Contains("not valid JSON"));
  CHECK_THAT(complaint("NaN"), Contains("not valid JSON"));
  CHECK_THAT(complaint("1e999"), Contains("not valid JSON"));
  CHECK_THAT(complaint("\"\xc0\xaf\""), Contains("not valid JSON"));
  CHECK_THAT(complaint("\xef\xbb\xbf{}"), Contains("byte order mark"));
  CHECK_THAT(complaint(R"({"a":1,"b":{"a":2,"a":3}})"), Contains("the name 'a' occurs twice"));
  CHECK_THAT(complaint("18446744073709551616"), Contains("does not fit 64 bits"));
  CHECK_THAT(complaint("-9223372036854775809"), Contains("does not fit 64 bits"));
  CHECK_THAT(complaint("123456789012345678901234567890"), Contains("does not fit 64 bits"));
  CHECK_THAT(complaint(std::string(100000, '[')), Contains("nested deeper than 64 levels"));
  CHECK_THAT(complaint("[1,2,3]", {.max_nodes = 3}), Contains("more than 3 values"));
  const io::JsonLimits by_size{.max_nodes = 3, .bytes_per_node = 4};
  CHECK_THAT(complaint("[1,2,3]        ", by_size), Contains("more than 3 values"));  // 15 bytes
  CHECK(io::parse_json("[1,2,3]         ", by_size).items.size() == 3);
  CHECK_THAT(complaint("[1,2,3,4]       ", by_size), Contains("more than 4 values"));
}

TEST_CASE("json: members of another kind are told", "[io]") {
  const Json root = io::parse_json(R"({"a":1,"b":"x"})");
  CHECK(root.get_float("a") == 1.0);
  CHECK_THAT(test::error_of([&] { root.get_int("c"); }), Contains("missing 'c'"));
  CHECK_THAT(test::error_of([&] { root.get_int("b"); }),
             Contains("'b' is a string, expected an integer"));
  const Json big = io::parse_json(R"({"a":9223372036854775808})");
  CHECK_THAT(test::error_of([&] { big.get_int("a"); }),
             Contains("'a' is an integer above 2^63 - 1, expected an integer"));
  CHECK_THAT(test::error_of([&] { root.get_float("b"); }), Contains("expected a fraction"));
}
