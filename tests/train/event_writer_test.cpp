#include "vgen/train/event_writer.h"

#include <catch2/catch.hpp>

#include "support/support.h"

using namespace vgen;
using namespace vgen::train;
using Catch::Matchers::Contains;

namespace {

std::string hex(const std::string& bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

}  // namespace

TEST_CASE("events: the bytes that TensorBoard's own writer makes", "[train][golden]") {
  CHECK(hex(frame_record(version_event(1.0))) ==
        "1800000000000000a37f4b2209000000000000f03f1a0d627261696e2e4576656e743a3286bf577a");
  CHECK(hex(frame_record(scalar_event(2.0, 7, "loss", 0.5f))) ==
        "1a00000000000000129bd82d09000000000000004010072a0d0a0b0a046c6f7373150000003fc33fc24a");
}

TEST_CASE("events: zero values, negative steps, images, restarts", "[train]") {
  // A oneof value of 0.0 is written, a step of 0 is not.
  CHECK(hex(scalar_event(0.0, 0, "a", 0.0f)) == "0900000000000000002a0a0a080a01611500000000");
  // -1 is a ten-byte varint.
  CHECK(hex(scalar_event(0.0, -1, "a", 0.0f)) ==
        "09000000000000000010ffffffffffffffffff012a0a0a080a01611500000000");
  CHECK(hex(image_event(0.0, 1, "a", "PNG", 2, 3)) ==
        "09000000000000000010012a120a100a0161220b0802100318032203504e47");
  CHECK(hex(restart_event(0.0, 5)) == "09000000000000000010053a020801");
}

TEST_CASE("events: a file has the version, then what is added", "[train]") {
  const test::TempDir folder;
  EventWriter writer(folder.path(), 0);
  CHECK_THAT(writer.path(), Contains("/events.out.tfevents."));
  const auto version = test::read_file(writer.path());
  CHECK(version.substr(0, 12) == frame_record(version_event(1.0)).substr(0, 12));
  writer.scalar("loss", 0.25, 3);
  const auto all = test::read_file(writer.path());
  CHECK(all.size() == version.size() + frame_record(scalar_event(2.0, 3, "loss", 0.25f)).size());
  EventWriter second(folder.path(), 4);  // the same second and process: another name
  CHECK(second.path() != writer.path());
}

TEST_CASE("events: an unwritable folder is told", "[train]") {
  CHECK_THAT(test::error_of([] { EventWriter("/nowhere", 0); }),
             Contains("/nowhere/events.out.tfevents.") && Contains("cannot be written"));
}
