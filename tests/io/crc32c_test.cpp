#include "vgen/io/crc32c.h"

#include <catch2/catch.hpp>
#include <vector>

using namespace vgen;
using io::crc32c, io::crc32c_text;

TEST_CASE("crc32c: known answers, whole and in parts", "[io]") {
  const std::string text = "123456789";
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  CHECK(crc32c(bytes) == 0xe3069283u);
  CHECK(crc32c(bytes.subspan(4), crc32c(bytes.first(4))) == 0xe3069283u);
  const std::vector<std::byte> zeros(32);
  CHECK(crc32c(zeros) == 0x8a9136aau);  // RFC 3720, B.4
  CHECK(crc32c_text(0x0a9136aau) == "0a9136aa");
}
