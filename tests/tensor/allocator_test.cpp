// Memory of large CPU tensors: kept, reused, bounded.

#include "vgen/tensor/allocator.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <thread>
#include <vector>

namespace vgen {
namespace {

/// The test process has one main of its own, so the first to come installs it.
void install() {
  static const bool is_installed = [] {
    install_tensor_allocator();
    return true;
  }();
  CHECK(is_installed);
}

torch::Tensor bytes(int64_t count) { return torch::empty({count}, torch::kUInt8); }

TEST_CASE("allocator: a freed large block serves the next request of its size", "[tensor]") {
  install();
  const auto before = large_block_stats();
  void* address = nullptr;
  {
    const auto tensor = bytes(8 * kLargeBlock);
    address = tensor.data_ptr();
    CHECK(large_block_stats().in_use == before.in_use + 8 * kLargeBlock);
    tensor.fill_(7);
  }
  CHECK(large_block_stats().in_use == before.in_use);
  CHECK(large_block_stats().kept >= 8 * kLargeBlock);
  CHECK(bytes(8 * kLargeBlock - 100).data_ptr() == address);
  CHECK(bytes(kLargeBlock).data_ptr() != address);  // far too large for it
}

TEST_CASE("allocator: small tensors are not its business", "[tensor]") {
  install();
  const auto before = large_block_stats();
  const auto tensor = bytes(kLargeBlock - 1);
  CHECK(large_block_stats().in_use == before.in_use);
}

TEST_CASE("allocator: what is kept stays in proportion to the peak", "[tensor]") {
  install();
  for (int64_t round = 0; round < 3; ++round) {
    for (int64_t size = 1; size < 40; ++size) {
      const auto a = bytes(size * kLargeBlock), b = bytes(size * kLargeBlock / 2 + kLargeBlock);
      a[0] = 1;
    }
    const auto stats = large_block_stats();
    CHECK(stats.in_use + stats.kept <= 1.1 * static_cast<double>(stats.peak_in_use));
    CHECK(stats.kept > 0);
  }
}

TEST_CASE("allocator: pages of blocks that do not fit serve other sizes", "[tensor]") {
  install();
  // Few large blocks, then many small ones, and so on: none fits in the place of another. Sizes are
  // no multiples of a huge page.
  constexpr int64_t kTotal = 96 * kLargeBlock;
  const auto round = [](int64_t count) {
    std::vector<torch::Tensor> tensors;
    for (int64_t i = 0; i < count; ++i) {
      tensors.push_back(bytes(kTotal / count + 700'000));
      tensors.back().fill_(i + 1);
    }
    for (int64_t i = 0; i < count; ++i) {
      const auto* data = tensors[i].const_data_ptr<uint8_t>();
      const auto size = static_cast<size_t>(tensors[i].numel());
      CHECK((data[0] == i + 1 && std::memcmp(data, data + 1, size - 1) == 0));
    }
  };
  round(3);
  const auto before = large_block_stats();
  for (const int64_t count : {48, 4, 31, 2, 60, 5}) round(count);
  const auto after = large_block_stats();
  CHECK(after.in_use + after.kept <= 1.1 * static_cast<double>(after.peak_in_use));
  // Six rounds; without moved pages each asks the system for all of its memory. What is not moved
  // are ends of blocks, and what the most in use has grown by.
  CHECK(after.mapped - before.mapped < 2 * kTotal);
}

TEST_CASE("allocator: threads, growth and copies keep their values", "[tensor]") {
  install();
  std::vector<std::thread> threads;
  std::vector<int> failures(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t, &failures] {
      for (int i = 0; i < 20; ++i) {
        auto tensor = torch::full({kLargeBlock / 4 + i * 100'000}, t, torch::kInt32);
        const auto copy = tensor.clone();
        tensor.resize_({kLargeBlock});
        failures[t] += copy.ne(t).any().item<bool>();
        failures[t] += tensor.slice(0, 0, kLargeBlock / 4).ne(t).any().item<bool>();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(failures == std::vector<int>(4, 0));
}

}  // namespace
}  // namespace vgen
