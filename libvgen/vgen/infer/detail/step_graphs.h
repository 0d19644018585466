#pragma once
// Work on a device that repeats with equal shapes: recorded once, then launched as one.

#include <c10/core/Device.h>
#include <c10/util/FunctionRef.h>

#include <cstdint>
#include <memory>

namespace vgen::infer {

class StepGraphs {
 public:
  virtual ~StepGraphs() = default;
  /// Runs `step`. Where graphs exist, the second call of a key records what it launches and later
  /// ones replay that: `step` must read and write the same tensors each time and not wait for the
  /// device.
  virtual void run(int64_t key, c10::function_ref<void()> step) = 0;
  virtual bool has_graphs() const = 0;
};

/// CUDA graphs for a CUDA device in a build with CUDA, plain calls otherwise.
std::unique_ptr<StepGraphs> make_step_graphs(c10::Device device);

}  // namespace vgen::infer
