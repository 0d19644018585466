#include "vgen/core/strings.h"

#include <catch2/catch.hpp>

namespace vgen {

TEST_CASE("str_cat: joins text and numbers", "[core]") {
  CHECK(str_cat("entry ", 7, " of ", std::string("x.tar"), ' ', true, " ", 0.1, " ", -3L) ==
        "entry 7 of x.tar true 0.1 -3");
  CHECK(str_cat(1e-4) == "1e-04");
  CHECK(str_cat(uint8_t{200}) == "200");
}

TEST_CASE("strings: split and join are inverse", "[core]") {
  CHECK(split("a,b,,c", ',') == std::vector<std::string>{"a", "b", "", "c"});
  CHECK(split("", ',').empty());
  CHECK(split("a,", ',') == std::vector<std::string>{"a", ""});
  CHECK(join({"a", "b", "", "c"}, ",") == "a,b,,c");
}

TEST_CASE("strings: numbers for people", "[core]") {
  CHECK(format_bytes(7) == "7 B");
  CHECK(format_bytes(1536) == "1.50 KiB");
  CHECK(format_bytes(uint64_t{9830400044}) == "9.16 GiB");
  CHECK(format_seconds(12.34) == "12.3s");
  CHECK(format_seconds(245) == "4m 05s");
  CHECK(format_seconds(7380) == "2h 03m");
  CHECK(format_count(71883403) == "71,883,403");
  CHECK(format_count(0) == "0");
  CHECK(format_count(1000) == "1,000");
  CHECK(format_shape({2, 3}) == "[2, 3]");
  CHECK(format_fixed(2.0 / 3, 3) == "0.667");
}

TEST_CASE("strings: only a whole number is a number", "[core]") {
  int64_t integer = 0;
  double number = 0;
  CHECK(parse_int("-12", integer));
  CHECK(integer == -12);
  CHECK_FALSE(parse_int("12a", integer));
  CHECK_FALSE(parse_int("", integer));
  CHECK_FALSE(parse_int("99999999999999999999", integer));
  CHECK(parse_double("1e-4", number));
  CHECK(number == 1e-4);
  CHECK_FALSE(parse_double("1.0 ", number));
}

TEST_CASE("nearest_name: finds a typo, not a stranger", "[core]") {
  CHECK(nearest_name("n_layr", {"n_layer", "n_head"}) == "n_layer");
  CHECK(nearest_name("zebra", {"n_layer", "n_head"}).empty());
  CHECK(nearest_name("", {}).empty());
}

TEST_CASE("printable: hostile names become one safe line", "[core]") {
  CHECK(printable("a\nb\x1b[31m") == "a?b?[31m");
  CHECK(printable(std::string(100, 'x'), 10) == "xxxxxxxxxx...");
}

}  // namespace vgen
