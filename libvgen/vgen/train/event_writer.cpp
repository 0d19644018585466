#include "vgen/train/event_writer.h"

#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <span>

#include "vgen/core/error.h"
#include "vgen/io/crc32c.h"

namespace vgen::train {

namespace {

enum WireType : uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

template <class Number>
std::string little_endian(Number value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>((value & 0x7f) | 0x80));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}

std::string key(uint64_t field, WireType type) { return varint(field << 3 | type); }

std::string bytes_field(uint64_t field, std::string_view bytes) {
  return str_cat(key(field, kBytes), varint(bytes.size()), bytes);
}

std::string int_field(uint64_t field, int64_t value) {
  if (value == 0) return "";                                          // proto3 leaves out zeros
  return key(field, kVarint) + varint(static_cast<uint64_t>(value));  // negative: ten bytes
}

std::string event_head(double wall_time, int64_t step) {
  return str_cat(key(1, kFixed64), little_endian(wall_time), int_field(2, step));
}

std::string summary_event(double wall_time, int64_t step, std::string_view tag,
                          const std::string& value) {
  const std::string tagged = bytes_field(1, tag) + value;
  return event_head(wall_time, step) + bytes_field(5, bytes_field(1, tagged));
}

uint32_t masked_crc(std::string_view data) {
  const uint32_t crc = io::crc32c(std::as_bytes(std::span(data.data(), data.size())));
  return std::rotr(crc, 15) + 0xa282ead8u;
}

double now() {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}

std::string host_name() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return "localhost";
  return name;
}

}  // namespace

std::string version_event(double wall_time) {
  return event_head(wall_time, 0) + bytes_field(3, "brain.Event:2");
}

std::string restart_event(double wall_time, int64_t step) {
  constexpr int64_t kStart = 1;  // SessionLog.START
  return event_head(wall_time, step) + bytes_field(7, int_field(1, kStart));
}

std::string scalar_event(double wall_time, int64_t step, std::string_view tag, float value) {
  return summary_event(wall_time, step, tag, key(2, kFixed32) + little_endian(value));
}

std::string image_event(double wall_time, int64_t step, std::string_view tag, std::string_view png,
                        int64_t height, int64_t width) {
  constexpr int64_t kRgb = 3;
  const std::string image =
      str_cat(int_field(1, height), int_field(2, width), int_field(3, kRgb), bytes_field(4, png));
  return summary_event(wall_time, step, tag, bytes_field(4, image));
}

std::string frame_record(std::string_view data) {
  const std::string length = little_endian(static_cast<uint64_t>(data.size()));
  return str_cat(length, little_endian(masked_crc(length)), data, little_endian(masked_crc(data)));
}

EventWriter::EventWriter(const std::string& folder, int64_t first_step) {
  const double time = now();
  const std::string stem = str_cat(folder, "/events.out.tfevents.", static_cast<int64_t>(time), ".",
                                   host_name(), ".", static_cast<int64_t>(getpid()), ".");
  int64_t counter = 0;
  while (std::filesystem::exists(str_cat(stem, counter))) ++counter;
  path_ = str_cat(stem, counter);
  file_.open(path_, std::ios::binary);
  write(version_event(time));
  if (first_step > 0) write(restart_event(time, first_step));
}

void EventWriter::scalar(std::string_view tag, double value, int64_t step) {
  write(scalar_event(now(), step, tag, static_cast<float>(value)));
}

void EventWriter::image(std::string_view tag, std::string_view png, int64_t height, int64_t width,
                        int64_t step) {
  write(image_event(now(), step, tag, png, height, width));
}

void EventWriter::write(const std::string& event) {
  file_ << frame_record(event) << std::flush;
  require(file_.good(), ErrorCode::kUnavailable, path_, ": cannot be written: ", errno_text(errno));
}

}  // namespace vgen::train
