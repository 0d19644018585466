#include "vgen/tensor/allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>
#include <unordered_map>

#include "vgen/core/error.h"
#include "vgen/core/strings.h"

namespace vgen {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr double kSlack = 1.1;      // in use and kept, over the peak in use
constexpr double kLooseFit = 1.25;  // a kept block may be so much larger than the request

/// Sizes in steps of an eighth of the power of two below: near requests share blocks.
size_t size_class(size_t bytes) {
  const size_t step = std::max(std::bit_floor(bytes) / 8, size_t{256} << 10);
  return (bytes + step - 1) / step * step;
}

// A block begins on a huge page; the rest of its last one is never touched.
void* map_block(size_t bytes) {
  const size_t span = bytes + kHugePage;
  void* const mapped =
      mmap(nullptr, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(mapped);
  const uintptr_t aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = begin + span, block_end = aligned + bytes;
  if (aligned > begin) munmap(mapped, aligned - begin);
  if (end > block_end) munmap(reinterpret_cast<void*>(block_end), end - block_end);
  void* const block = reinterpret_cast<void*>(aligned);
  madvise(block, bytes, MADV_HUGEPAGE);  // a wish: without huge pages it works as well
  return block;
}

class LargeBlocks {
 public:
  void* take(size_t request) {
    const size_t bytes = size_class(request);
    const std::lock_guard lock(mutex_);
    void* block = take_kept(bytes);
    if (block == nullptr) {
      make_room(bytes);
      block = map_block(bytes);
      if (block == nullptr) {  // without what is kept there may be enough
        release(kept_bytes_);
        block = map_block(bytes);
      }
      require(block != nullptr, ErrorCode::kUnavailable, "out of memory: ", format_bytes(bytes),
              " for a tensor, ", format_bytes(in_use_bytes_),
              " are in use; use a smaller batch or model");
      in_use_.emplace(block, bytes);
      in_use_bytes_ += bytes;
    }
    peak_bytes_ = std::max(peak_bytes_, in_use_bytes_);
    return block;
  }

  /// False where the block is not one of these.
  bool give_back(void* block) {
    const std::lock_guard lock(mutex_);
    const auto found = in_use_.find(block);
    if (found == in_use_.end()) return false;
    const size_t bytes = found->second;
    in_use_.erase(found);
    in_use_bytes_ -= bytes;
    const auto by_age = by_age_.emplace(next_age_++, Kept{block, bytes}).first;
    by_size_.emplace(bytes, by_age);
    kept_bytes_ += bytes;
    return true;
  }

  LargeBlockStats stats() {
    const std::lock_guard lock(mutex_);
    return {static_cast<int64_t>(in_use_bytes_), static_cast<int64_t>(peak_bytes_),
            static_cast<int64_t>(kept_bytes_)};
  }

 private:
  struct Kept {
    void* block;
    size_t bytes;
  };
  using ByAge = std::map<uint64_t, Kept>;

  void* take_kept(size_t bytes) {
    auto best = by_size_.lower_bound(bytes);
    if (best == by_size_.end() ||
        static_cast<double>(best->first) > kLooseFit * static_cast<double>(bytes)) {
      return nullptr;
    }
    const Kept kept = best->second->second;
    by_age_.erase(best->second);
    by_size_.erase(best);
    kept_bytes_ -= kept.bytes;
    in_use_.emplace(kept.block, kept.bytes);
    in_use_bytes_ += kept.bytes;
    return kept.block;
  }

  void make_room(size_t bytes) {
    const double peak = static_cast<double>(std::max(peak_bytes_, in_use_bytes_ + bytes));
    const auto limit = static_cast<size_t>(kSlack * peak);
    const size_t total = in_use_bytes_ + kept_bytes_ + bytes;
    if (total > limit) release(total - limit);
  }

  // The oldest first, until so many bytes are gone.
  void release(size_t bytes) {
    size_t gone = 0;
    while (gone < bytes && !by_age_.empty()) {
      const auto oldest = by_age_.begin();
      const Kept kept = oldest->second;
      auto [first, last] = by_size_.equal_range(kept.bytes);
      by_size_.erase(
          std::find_if(first, last, [&](const auto& at) { return at.second == oldest; }));
      by_age_.erase(oldest);
      munmap(kept.block, kept.bytes);
      kept_bytes_ -= kept.bytes;
      gone += kept.bytes;
    }
  }

  std::mutex mutex_;
  std::unordered_map<void*, size_t> in_use_;
  ByAge by_age_;  // of the kept ones; the oldest first
  std::multimap<size_t, ByAge::iterator> by_size_;
  uint64_t next_age_ = 0;
  size_t in_use_bytes_ = 0, peak_bytes_ = 0, kept_bytes_ = 0;
};

// Never destroyed: tensors in globals may outlive main.
LargeBlocks& large_blocks() {
  static auto* const blocks = new LargeBlocks;
  return *blocks;
}

void give_back(void* block) {
  if (block == nullptr) return;
  const bool may_be_large = reinterpret_cast<uintptr_t>(block) % kHugePage == 0;
  if (may_be_large && large_blocks().give_back(block)) return;
  c10::free_cpu(block);
}

class TensorAllocator : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* const block = bytes >= static_cast<size_t>(kLargeBlock) ? large_blocks().take(bytes)
                                                                  : c10::alloc_cpu(bytes);
    return {block, block, &give_back, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace

void install_tensor_allocator() {
  // Blocks below the first value come from the heap, which shrinks only by more than the second.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
  mallopt(M_TOP_PAD, 64 << 20);
  static TensorAllocator allocator;
  c10::SetCPUAllocator(&allocator, /*priority=*/1);
}

LargeBlockStats large_block_stats() { return large_blocks().stats(); }

}  // namespace vgen
