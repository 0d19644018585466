#pragma once
// Threads that read, decode and crop images ahead of the tokenizer, which gets them in order.

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "vgen/core/error.h"
#include "vgen/core/threads.h"
#include "vgen/data/image.h"

namespace vgen::extract::detail {

struct Crops {
  int64_t image = 0;
  std::vector<data::Image> crops;
  std::optional<Error> broken;  ///< instead of crops
};

/// What a thread makes of an image. Throws Error for a broken one.
using MakeCrops = std::function<std::vector<data::Image>(int64_t image)>;

class CropStream {
 public:
  /// Starts `workers` threads over `images`; at most 2 * workers + 2 are ready or in work.
  /// Throws Error kUnavailable when the system refuses a thread.
  CropStream(std::vector<int64_t> images, int64_t workers, MakeCrops make);
  /// Stops and joins; images in work are finished and thrown away.
  ~CropStream() = default;
  CropStream(const CropStream&) = delete;
  CropStream& operator=(const CropStream&) = delete;

  /// The next image of the list; call once for each. Rethrows what is no Error, such as no memory.
  Crops next();

 private:
  struct Slot {
    Crops crops;
    std::exception_ptr failure;
    bool is_done = false;
  };
  void stop();
  void work();

  std::vector<int64_t> images_;
  MakeCrops make_;
  std::mutex mutex_;
  std::condition_variable free_, done_;
  std::vector<Slot> slots_;  // a ring
  size_t taken_ = 0;         // images that threads took
  size_t given_ = 0;         // images that next() gave
  bool is_stopping_ = false;
  Threads threads_{[this] { stop(); }};  // last: they use all of the above
};

}  // namespace vgen::extract::detail
