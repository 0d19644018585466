#include "vgen/infer/detail/cuda_graphs.h"

#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <unordered_map>

namespace vgen::infer {

namespace {

class CudaGraphs : public StepGraphs {
 public:
  explicit CudaGraphs(c10::Device device)
      : device_(device),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())) {}

  // The first call is plain: libraries choose their kernels and take their memory then, which they
  // may not do while a graph is recorded.
  void run(int64_t key, c10::function_ref<void()> step) override {
    const c10::cuda::CUDAGuard guard(device_);
    const auto found = graphs_.find(key);
    if (found == graphs_.end()) {
      graphs_.emplace(key, nullptr);
      on_own_stream(step);
      return;
    }
    if (!found->second) {
      auto graph = std::make_unique<at::cuda::CUDAGraph>();
      on_own_stream([&] {
        graph->capture_begin(pool_);
        step();
        graph->capture_end();
      });
      pool_ = graph->pool();  // graphs run one at a time, so they share their memory
      found->second = std::move(graph);
    }
    found->second->replay();
  }

  bool has_graphs() const override { return true; }

 private:
  // Recording needs a stream that is not the default one. It follows what the caller's stream did
  // before, and the caller's stream follows it.
  void on_own_stream(c10::function_ref<void()> body) {
    const c10::cuda::CUDAStream caller = c10::cuda::getCurrentCUDAStream(device_.index());
    at::cuda::CUDAEvent before, after;
    before.record(caller);
    before.block(stream_);
    {
      const c10::cuda::CUDAStreamGuard guard(stream_);
      body();
    }
    after.record(stream_);
    after.block(caller);
  }

  c10::Device device_;
  c10::cuda::CUDAStream stream_;
  at::cuda::MempoolId_t pool_ = {0, 0};
  std::unordered_map<int64_t, std::unique_ptr<at::cuda::CUDAGraph>> graphs_;
};

}  // namespace

std::unique_ptr<StepGraphs> make_cuda_graphs(c10::Device device) {
  return std::make_unique<CudaGraphs>(device);
}

}  // namespace vgen::infer
