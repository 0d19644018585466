// at::parallel_for runs on one thread, and says nothing, where it is compiled without OpenMP.

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <mutex>
#include <set>
#include <thread>

namespace vgen {
namespace {

TEST_CASE("parallel: loops of this project use all of LibTorch's threads", "[kernels]") {
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  at::parallel_for(0, 3, 1, [&](int64_t begin, int64_t end) {
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
    CHECK(end - begin == 1);
  });
  at::set_num_threads(before);
  CHECK(threads.size() == 3);
}

}  // namespace
}  // namespace vgen
