// How long a rank stands still for collectives: marks on streams, and what strategies tell.

#include "vgen/dist/detail/stream_waits.h"

#include <torch/torch.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <thread>

#include "dist/tower.h"
#include "support/ranks.h"
#include "support/torch_support.h"
#include "vgen/dist/strategy.h"
#include "vgen/tensor/device.h"

namespace vgen {
namespace {

using dist::detail::StreamWaits;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

const c10::Device kToy{c10::kPrivateUse1, 0};

/// While this lives, kToy is a device whose events have the times that the test says.
class ToyDevice : public c10::impl::DeviceGuardImplInterface {
 public:
  ToyDevice() { entry() = this; }
  ~ToyDevice() override { entry() = nullptr; }

  // The test's side. Milliseconds.
  double now = 0;              ///< of the next mark, in the order of the stream
  mutable double reached = 0;  ///< up to which the device has come
  mutable int64_t made = 0, alive = 0, waited_for = 0;

  // LibTorch's side.
  c10::DeviceType type() const override { return kToy.type(); }
  c10::Device exchangeDevice(c10::Device /*device*/) const override { return kToy; }
  c10::Device getDevice() const override { return kToy; }
  void setDevice(c10::Device /*device*/) const override {}
  void uncheckedSetDevice(c10::Device /*device*/) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 0; }  // autograd needs no thread
  void record(void** event, const c10::Stream& /*stream*/, c10::DeviceIndex /*index*/,
              c10::EventFlag flag) const override {
    TORCH_CHECK(flag == c10::EventFlag::BACKEND_DEFAULT, "events without times");
    if (*event == nullptr) {
      *event = new double(0);
      ++made;
      ++alive;
    }
    time_of(*event) = now;
  }
  bool queryEvent(void* event) const override { return time_of(event) <= reached; }
  void synchronizeEvent(void* event) const override {
    if (queryEvent(event)) return;
    ++waited_for;
    reached = time_of(event);
  }
  double elapsedTime(void* begin, void* end, c10::DeviceIndex /*index*/) const override {
    return time_of(end) - time_of(begin);
  }
  void destroyEvent(void* event, c10::DeviceIndex /*index*/) const noexcept override {
    delete static_cast<double*>(event);
    --alive;
  }

 private:
  static std::atomic<const DeviceGuardImplInterface*>& entry() {
    return c10::impl::device_guard_impl_registry[static_cast<size_t>(kToy.type())];
  }
  static double& time_of(void* event) { return *static_cast<double*>(event); }
};

TEST_CASE("stream waits: the times between marks, without waiting for the device", "[dist]") {
  ToyDevice device;
  {
    StreamWaits waits(kToy);
    const auto wait = [&](double begin, double end) {
      device.now = begin;
      waits.begin();
      device.now = end;
      waits.end();
    };
    CHECK(waits.seconds() == 0);
    wait(10, 35);
    wait(40, 42);
    device.now = 50;
    waits.begin();  // never ended: a wait that has failed
    wait(60, 60.5);
    CHECK(device.waited_for == 0);
    CHECK(device.made == 6);
    CHECK(waits.seconds() == Approx(0.0275));
    CHECK(device.reached == 60.5);
    CHECK(waits.seconds() == Approx(0.0275));  // each counts once

    // As many events as the device is behind, again and again.
    for (int64_t step = 0; step < 100; ++step) {
      wait(100 + 10 * step, 101 + 10 * step);
      device.reached = 100 + 10 * step;  // all but the last one
    }
    CHECK(device.made == 6);
    CHECK(waits.seconds() == Approx(0.1275));
  }
  CHECK(device.alive == 0);
}

TEST_CASE("stream waits: on a CUDA device, what its stream does between the marks",
          "[dist][cuda]") {
  if (test::lacks_cuda()) return;
  const c10::Device device(c10::kCUDA, 0);
  const torch::Tensor matrix = torch::ones({4096, 4096}, device) / 4096;
  torch::Tensor product = matrix.matmul(matrix);
  const auto work = [&] {
    for (int64_t i = 0; i < 20; ++i) product = product.matmul(matrix);
  };
  StreamWaits work_between(device), nothing_between(device);
  work();
  torch::cuda::synchronize();
  const auto begin = Clock::now();
  work_between.begin();
  work();
  work_between.end();
  nothing_between.begin();
  nothing_between.end();
  work();
  torch::cuda::synchronize();
  const double elapsed = seconds_since(begin);
  // 20 of 40 products, and the host gives them out faster than they are computed.
  CHECK(work_between.seconds() > 0.25 * elapsed);
  CHECK(work_between.seconds() < 0.75 * elapsed);
  CHECK(nothing_between.seconds() >= 0);
  CHECK(nothing_between.seconds() < 0.1 * elapsed);
}

constexpr std::chrono::milliseconds kLate{400};

struct Seen {
  double wait_seconds = 0, seconds = 0;
};

/// What each rank sees of two steps under a strategy; in each the last rank comes late to the
/// backward pass.
std::vector<Seen> steps_with_a_late_rank(int64_t ranks, const std::string& strategy_name,
                                         c10::DeviceType type) {
  std::vector<Seen> seen(static_cast<size_t>(ranks));
  test::run_ranks(
      ranks,
      [&](std::unique_ptr<dist::Group> group) {
        const int64_t rank = group->rank();
        const c10::Device device = type == c10::kCPU
                                       ? c10::Device(type)
                                       : c10::Device(type, static_cast<c10::DeviceIndex>(rank));
        const auto strategy = dist::make_strategy(test::parallel(strategy_name, ranks),
                                                  std::move(group), c10::kFloat, ranks);
        test::Tower tower(test::Shape(), /*seed=*/3);
        tower->to(device);
        strategy->attach({tower->model()}, {});
        const auto step = [&](std::chrono::milliseconds late) {
          strategy->begin();
          const BlockRunnerGuard guard(strategy->runner());
          const auto loss = tower->forward(torch::ones({2, 4}, device)).sum();
          loss.item<double>();  // also of the device: only after this it is late
          if (rank == ranks - 1) std::this_thread::sleep_for(late);
          strategy->backward(0, loss, /*sync_gradients=*/true);
          strategy->end();
          strategy->clip_grad_norm(0, 1.0);
          strategy->updated(0);
        };
        step({});  // connects the ranks
        strategy->any_rank(false);
        const double before = strategy->wait_seconds();
        const auto begin = Clock::now();
        step(kLate);
        step(kLate);
        Seen& own = seen[static_cast<size_t>(rank)];
        own.wait_seconds = strategy->wait_seconds() - before;
        own.seconds = seconds_since(begin);
        strategy->group().barrier();
      },
      type);
  return seen;
}

void check_waits(int64_t ranks, c10::DeviceType device) {
  const double late = 2 * std::chrono::duration<double>(kLate).count();
  for (const std::string strategy : {"ddp", "zero1", "fsdp", "hsdp"}) {
    INFO(strategy << " of " << ranks << " ranks");
    const auto seen = steps_with_a_late_rank(ranks, strategy, device);
    for (const Seen& rank : seen) {
      CHECK(rank.wait_seconds >= 0);
      CHECK(rank.wait_seconds <= rank.seconds);
    }
    if (ranks == 1) {
      CHECK(seen[0].wait_seconds == 0);
      continue;
    }
    CHECK(seen.front().wait_seconds > 0.5 * late);
    CHECK(seen.back().wait_seconds < 0.5 * late);
  }
}

TEST_CASE("strategies: those who wait for a late rank tell how long, and it does not", "[dist]") {
  check_waits(2, c10::kCPU);
}

TEST_CASE("strategies: the same of CUDA devices, whose hosts do not wait", "[dist][cuda]") {
  if (test::lacks_cuda()) return;
  check_waits(std::min<int64_t>(4, num_cuda_devices()), c10::kCUDA);
}

}  // namespace
}  // namespace vgen
