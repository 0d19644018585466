#pragma once
// The threads of a loader: workers make samples ahead, an assembler puts them into batches in
// order.
//
//   stream of samples --> workers --> slots (a ring, in order) --> assembler --> ready batches
//
// Which samples a batch holds is decided by the assembler from the order alone, so timing and the
// number of workers cannot change it.

#include <ATen/core/Tensor.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "vgen/core/error.h"
#include "vgen/core/threads.h"
#include "vgen/data/image.h"
#include "vgen/data/loader.h"
#include "vgen/data/sampler.h"

namespace vgen::data::detail {

/// One sample of a rank's order.
struct StreamItem {
  LoaderPosition position;
  int64_t index = 0;  ///< in the sampler: counts repeats
};

/// The orders of the epochs one after the other, from a position on.
class SampleStream {
 public:
  SampleStream(const Sampler& sampler, LoaderPosition start, bool is_endless);
  std::optional<StreamItem> next();  ///< none: the epoch is over and there is no other

 private:
  Sampler sampler_;
  LoaderPosition position_;
  bool is_endless_;
  std::vector<int64_t> order_;  // of position_.epoch; empty until it is needed
};

struct PipelineConfig {
  int64_t batch_size = 1;
  int64_t image_size = 1;
  int64_t workers = 1;
  int64_t prefetch_batches = 1;
  bool pin_memory = false;
  bool is_endless = true;  ///< false: one epoch, the last batch may be short
  bool skips_broken = true;
  int64_t samples_per_epoch = 1;
  std::string where;  ///< of the dataset, for messages
};

/// What a worker makes of a sample. Throws Error for a broken image.
using MakeSample = std::function<Image(const StreamItem&)>;
/// Label and dataset index of a sample; called by the assembler.
using DescribeSample = std::function<std::pair<int64_t, int64_t>(const StreamItem&)>;
/// Told about every broken sample that is skipped, by the assembler.
using ReportBroken = std::function<void(const StreamItem&, const Error&)>;

struct PipelineCalls {
  MakeSample make;
  DescribeSample describe;
  ReportBroken report_broken;
};

struct ReadyBatch {
  ImageBatch batch;
  LoaderPosition next;  ///< the sample after its last one
  int64_t broken = 0;   ///< skipped since the batch before
};

class Pipeline {
 public:
  /// Starts the threads. Throws Error kUnavailable when the system refuses one.
  Pipeline(const PipelineConfig& config, SampleStream stream, PipelineCalls calls);
  /// Stops and joins them; samples in work are finished and thrown away.
  ~Pipeline() = default;
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  /// Waits for the next batch; none at the end of a stream that is not endless. Rethrows what went
  /// wrong in a thread, again at every later call.
  std::optional<ReadyBatch> next();

 private:
  struct Slot {
    StreamItem item;
    Image image;
    std::optional<Error> broken;
    std::exception_ptr failure;  // not the image's fault: out of memory, a defect
    bool is_done = false;
  };
  /// The batch that the assembler fills.
  struct Open {
    ImageBatch batch;
    int64_t size = 0;
    int64_t epoch = -1;
    bool began_epoch = false;  // its first sample was seen: an empty epoch is an error
    int64_t batches = 0;       // of the epoch
    int64_t broken = 0;
    std::optional<Error> first_broken;  // of the epoch
    LoaderPosition next;
  };

  void stop();
  void work();
  void assemble();
  void run_assembler();
  std::optional<Slot> take_slot();
  void begin_epoch(Open& open, const StreamItem& item);
  void add(Open& open, Slot slot);
  void push(Open& open);
  void check_epoch(const Open& open) const;
  void fail(std::exception_ptr error);

  PipelineConfig config_;
  PipelineCalls calls_;

  std::mutex mutex_;
  std::condition_variable slot_free_, slot_done_, batch_ready_, batch_taken_;
  SampleStream stream_;
  bool stream_ended_ = false;
  bool is_stopping_ = false;
  int64_t taken_ = 0;      // samples that workers took
  int64_t assembled_ = 0;  // samples that the assembler took
  std::vector<Slot> slots_;
  std::deque<ReadyBatch> ready_;
  bool has_ended_ = false;
  std::exception_ptr failure_;
  Threads threads_{[this] { stop(); }};  // last: they use all of the above
};

}  // namespace vgen::data::detail
