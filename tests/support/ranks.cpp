#include "support/ranks.h"

#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>

#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <vector>

namespace vgen::test {

namespace {
constexpr int64_t kTimeoutMs = 60'000;
}

void run_ranks(int64_t size, const std::function<void(std::unique_ptr<dist::Group> group)>& body,
               c10::DeviceType device) {
  // quirk of LibTorch 2.11: its flight recorder, one per process, notes new groups without a lock.
  ::setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/1);
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        at::set_num_threads(1);
        const auto index = static_cast<c10::DeviceIndex>(rank);
        const c10::DeviceGuard guard(device == c10::kCPU ? c10::Device(device)
                                                         : c10::Device(device, index));
        body(dist::Group::join(store, rank, size, kTimeoutMs, /*identity=*/"", device));
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace vgen::test
