#pragma once
// What a run tells of itself: metrics.jsonl (one JSON object a line: "step", then numbers by name)
// and TensorBoard scalars and images, the same names in both.

#include <ATen/core/Tensor.h>

#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "vgen/io/json.h"
#include "vgen/train/event_writer.h"

namespace vgen::train {

using Metrics = std::vector<std::pair<std::string, double>>;

/// One value of each rank: NAME_rank0, NAME_rank1, ... of the first 16; of more than 16 ranks also
/// the least and the largest over all, NAME_min and NAME_max, and whose they are, NAME_min_rank and
/// NAME_max_rank (the first of equal ones). Nothing of one rank.
void add_rank_values(Metrics& metrics, const std::string& name, const std::vector<double>& values);

/// Means of the terms of several steps. The values stay on their device until they are asked for.
class MetricWindow {
 public:
  /// The scalars of one step. Their names and order are the same in every step.
  void add(int64_t step, std::vector<std::pair<std::string, at::Tensor>> terms);

  /// Waits for the device. Throws Error(kInvalidArgument) "step 12: rec_loss is nan" for the first
  /// value that is not finite among the steps that were not checked yet; with `skip_bad` such steps
  /// count in no mean instead, and in skipped().
  void check(bool skip_bad);

  int64_t num_steps() const { return count_; }
  int64_t skipped() const { return skipped_; }  ///< steps left out since the beginning
  /// The means; none without a step. Call check() before.
  Metrics means() const;
  void clear();

  io::Json state() const;
  void load_state(const io::Json& state);

 private:
  struct Step {
    int64_t step;
    at::Tensor values;  ///< float64 (number of names)
  };
  std::vector<std::string> names_;
  std::vector<Step> pending_;
  std::vector<double> sums_;
  int64_t count_ = 0, skipped_ = 0;
};

/// Writes the metrics of one run. One thread.
class MetricWriter {
 public:
  /// Appends to <folder>/metrics.jsonl and, with tensorboard, writes an event file in
  /// <folder>/tensorboard. `first_step`: the step a run goes on from, 0 for a new one.
  MetricWriter(const std::string& folder, bool use_tensorboard, int64_t first_step);

  /// One line, flushed. TensorBoard gets each as "prefix/name". Throws Error(kUnavailable).
  void write(int64_t step, const std::string& prefix, const Metrics& metrics);
  /// image_HW3: uint8. `png` is the same, encoded. Nothing in metrics.jsonl.
  void image(int64_t step, const std::string& tag, std::string_view png, int64_t height,
             int64_t width);

 private:
  std::string path_;
  std::ofstream file_;
  std::unique_ptr<EventWriter> events_;
};

}  // namespace vgen::train
