#include "vgen/infer/detail/step_graphs.h"

#include "vgen/infer/detail/cuda_graphs.h"

namespace vgen::infer {

namespace {

class PlainSteps : public StepGraphs {
 public:
  void run(int64_t, c10::function_ref<void()> step) override { step(); }
  bool has_graphs() const override { return false; }
};

}  // namespace

std::unique_ptr<StepGraphs> make_step_graphs(c10::Device device) {
  std::unique_ptr<StepGraphs> graphs;
  if (device.is_cuda()) graphs = make_cuda_graphs(device);
  return graphs ? std::move(graphs) : std::make_unique<PlainSteps>();
}

}  // namespace vgen::infer
