#include "vgen/tensor/allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

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

/// Addresses and the mappings behind them: each a whole number of huge pages, but for the last.
struct Block {
  std::byte* begin = nullptr;
  size_t bytes = 0;
  std::vector<size_t> mappings = {};
};

// A block begins on a huge page; the rest of its last one is never touched.
std::optional<Block> map_block(size_t bytes) {
  const size_t span = bytes + kHugePage;
  void* const mapped =
      mmap(nullptr, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return std::nullopt;
  const auto begin = reinterpret_cast<uintptr_t>(mapped);
  const uintptr_t aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = begin + span, block_end = aligned + bytes;
  if (aligned > begin) munmap(mapped, aligned - begin);
  if (end > block_end) munmap(reinterpret_cast<void*>(block_end), end - block_end);
  const auto block = reinterpret_cast<std::byte*>(aligned);
  madvise(block, bytes, MADV_HUGEPAGE);  // a wish: without huge pages it works as well
  return Block{block, bytes, {bytes}};
}

// Pages of one mapping take the place of those of another, and are gone from `from`. False where
// the system refuses: both are what they were, but for `to`, which may be fresh.
bool move_pages(std::byte* from, size_t bytes, std::byte* to) {
  if (mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED) return true;
  // It may have unmapped `to` before it failed.
  void* const again = mmap(to, bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  require(again != MAP_FAILED || errno == EEXIST, ErrorCode::kUnavailable,
          "out of memory: ", format_bytes(bytes), " for a tensor; use a smaller batch or model");
  if (again == to) {
    madvise(to, bytes, MADV_HUGEPAGE);
  } else if (again != MAP_FAILED) {  // Linux before 4.17: `to` was still there
    munmap(again, bytes);
  }
  return false;
}

class LargeBlocks {
 public:
  void* take(size_t request) {
    const size_t bytes = size_class(request);
    const std::lock_guard lock(mutex_);
    std::optional<Block> block = take_kept(bytes);
    if (!block) block = make(bytes);
    require(block.has_value(), ErrorCode::kUnavailable, "out of memory: ", format_bytes(bytes),
            " for a tensor, ", format_bytes(in_use_bytes_),
            " are in use; use a smaller batch or model");
    std::byte* const begin = block->begin;
    in_use_bytes_ += block->bytes;
    peak_bytes_ = std::max(peak_bytes_, in_use_bytes_);
    in_use_.emplace(begin, std::move(*block));
    return begin;
  }

  /// False where the block is not one of these.
  bool give_back(void* begin) {
    const std::lock_guard lock(mutex_);
    const auto found = in_use_.find(begin);
    if (found == in_use_.end()) return false;
    in_use_bytes_ -= found->second.bytes;
    keep(next_age_++, std::move(found->second));
    in_use_.erase(found);
    return true;
  }

  LargeBlockStats stats() {
    const std::lock_guard lock(mutex_);
    return {.in_use = static_cast<int64_t>(in_use_bytes_),
            .peak_in_use = static_cast<int64_t>(peak_bytes_),
            .kept = static_cast<int64_t>(kept_bytes_),
            .mapped = static_cast<int64_t>(mapped_bytes_)};
  }

 private:
  using ByAge = std::map<uint64_t, Block>;

  void keep(uint64_t age, Block block) {
    const size_t bytes = block.bytes;
    by_size_.emplace(bytes, by_age_.emplace(age, std::move(block)).first);
    kept_bytes_ += bytes;
  }

  Block take_out(ByAge::iterator kept) {
    auto [first, last] = by_size_.equal_range(kept->second.bytes);
    by_size_.erase(std::find_if(first, last, [&](const auto& at) { return at.second == kept; }));
    Block block = std::move(kept->second);
    by_age_.erase(kept);
    kept_bytes_ -= block.bytes;
    return block;
  }

  std::optional<Block> take_kept(size_t bytes) {
    const auto best = by_size_.lower_bound(bytes);
    if (best == by_size_.end() ||
        static_cast<double>(best->first) > kLooseFit * static_cast<double>(bytes)) {
      return std::nullopt;
    }
    return take_out(best->second);
  }

  std::optional<Block> make(size_t bytes) {
    std::optional<Block> block = map_block(bytes);
    if (!block) {
      release(surplus_with(bytes));
      block = map_block(bytes);
    }
    if (!block) {  // without what is kept there may be enough
      release(kept_bytes_);
      block = map_block(bytes);
    }
    if (!block) return block;
    mapped_bytes_ += bytes;
    if (const size_t surplus = surplus_with(bytes); surplus > 0) fill(*block, surplus);
    num_mappings_ += block->mappings.size();
    release(surplus_with(bytes));
    return block;
  }

  // How many of the bytes that are kept are too many beside another block of so many.
  size_t surplus_with(size_t bytes) const {
    const double peak = static_cast<double>(std::max(peak_bytes_, in_use_bytes_ + bytes));
    const auto limit = static_cast<size_t>(kSlack * peak);
    const size_t total = in_use_bytes_ + kept_bytes_ + bytes;
    return total > limit ? total - limit : 0;
  }

  // Puts kept pages, those of the oldest blocks first, into the place of untouched ones: about as
  // many bytes as are wanted.
  void fill(Block& block, size_t wanted) {
    constexpr size_t kMaxMappings = 16'000;  // of all blocks; a process may have some 65,000
    const size_t end =
        std::min((wanted + kHugePage - 1) / kHugePage, block.bytes / kHugePage) * kHugePage;
    size_t filled = 0;
    std::vector<size_t> mappings;
    while (can_move_ && filled < end && !by_age_.empty() &&
           num_mappings_ + mappings.size() < kMaxMappings) {
      const auto oldest = by_age_.begin();
      const uint64_t age = oldest->first;
      Block donor = take_out(oldest);
      const size_t count = std::min(donor.mappings.front(), end - filled) / kHugePage * kHugePage;
      if (count == 0) {  // less than a huge page
        munmap(donor.begin, donor.bytes);
        cut_front(donor, donor.bytes);
        continue;
      }
      can_move_ = move_pages(donor.begin, count, block.begin + filled);
      if (can_move_) {
        filled += count;
        mappings.push_back(count);
        cut_front(donor, count);
      }
      if (donor.bytes > 0) keep(age, std::move(donor));
    }
    if (filled < block.bytes) mappings.push_back(block.bytes - filled);
    block.mappings = std::move(mappings);
    mapped_bytes_ -= filled;
  }

  // So many bytes, or some more, of the oldest blocks go back to the system.
  void release(size_t bytes) {
    while (bytes > 0 && !by_age_.empty()) {
      const auto oldest = by_age_.begin();
      const uint64_t age = oldest->first;
      Block block = take_out(oldest);
      const size_t pages = (bytes + kHugePage - 1) / kHugePage * kHugePage;
      const size_t count = std::min(block.mappings.front(), pages);
      munmap(block.begin, count);
      cut_front(block, count);
      bytes -= std::min(bytes, count);
      if (block.bytes > 0) keep(age, std::move(block));
    }
  }

  // Of the first mapping.
  void cut_front(Block& block, size_t bytes) {
    block.begin += bytes;
    block.bytes -= bytes;
    block.mappings.front() -= bytes;
    if (block.mappings.front() > 0) return;
    block.mappings.erase(block.mappings.begin());
    --num_mappings_;
  }

  std::mutex mutex_;
  std::unordered_map<void*, Block> in_use_;
  ByAge by_age_;  // of the kept ones; the oldest first
  std::multimap<size_t, ByAge::iterator> by_size_;
  uint64_t next_age_ = 0;
  size_t in_use_bytes_ = 0, peak_bytes_ = 0, kept_bytes_ = 0, mapped_bytes_ = 0;
  size_t num_mappings_ = 0;
  bool can_move_ = true;  // until the system refuses once
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
