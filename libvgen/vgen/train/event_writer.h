#pragma once
// TensorBoard event files: records of protobuf messages
// (tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto).

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>

namespace vgen::train {

/// One file in a log folder. Every record is flushed. One thread.
class EventWriter {
 public:
  /// Makes "events.out.tfevents.<seconds>.<host>.<pid>.0" with the version record. With
  /// first_step > 0, a run that goes on: points of that step and later that an earlier file has are
  /// hidden by TensorBoard. Throws Error(kUnavailable).
  EventWriter(const std::string& folder, int64_t first_step);

  void scalar(std::string_view tag, double value, int64_t step);
  /// `png`: the encoded file.
  void image(std::string_view tag, std::string_view png, int64_t height, int64_t width,
             int64_t step);

  const std::string& path() const { return path_; }

 private:
  void write(const std::string& event);

  std::string path_;
  std::ofstream file_;
};

// The bytes, for tests and other writers. wall_time is in seconds since 1970.
std::string version_event(double wall_time);
std::string restart_event(double wall_time, int64_t step);
std::string scalar_event(double wall_time, int64_t step, std::string_view tag, float value);
std::string image_event(double wall_time, int64_t step, std::string_view tag, std::string_view png,
                        int64_t height, int64_t width);
/// Length, masked CRC of the length, data, masked CRC of the data.
std::string frame_record(std::string_view data);

}  // namespace vgen::train
