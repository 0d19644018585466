#include "support/count_memory.h"

#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace vgen::test {

namespace {

constexpr uint8_t kPriority = 2;  // above that of vgen's own allocator

struct Bytes {
  std::atomic<int64_t> now{0}, peak{0};

  void add(int64_t size) {
    const int64_t sum = now += size;
    int64_t most = peak;
    while (most < sum && !peak.compare_exchange_weak(most, sum)) {
    }
  }
};

Bytes of_all;
thread_local std::shared_ptr<Bytes> of_thread;

struct Block {
  c10::DataPtr memory;
  int64_t size = 0;
  std::shared_ptr<Bytes> of_maker;
};

// By their address: LibTorch also frees by that alone, where it asked for memory without a tensor.
std::mutex mutex;
std::unordered_map<void*, Block> blocks;

void free_block(void* address) {
  std::unordered_map<void*, Block>::node_type node;
  {
    const std::lock_guard lock(mutex);
    node = blocks.extract(address);
  }
  if (node.empty()) {  // made before, or nothing at all: oneDNN frees that, too
    if (address != nullptr) c10::GetDefaultCPUAllocator()->raw_deallocate(address);
    return;
  }
  const Block& block = node.mapped();
  of_all.now -= block.size;
  if (block.of_maker) block.of_maker->now -= block.size;
}

/// LibTorch's own, with a count. Tensors may outlive the count that they were made under.
class CountingAllocator : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    Block block{c10::GetDefaultCPUAllocator()->allocate(size), static_cast<int64_t>(size),
                of_thread};
    void* const address = block.memory.get();
    const c10::Device device = block.memory.device();
    if (address == nullptr) return {nullptr, device};
    of_all.add(block.size);
    if (of_thread) of_thread->add(block.size);
    const std::lock_guard lock(mutex);
    blocks.emplace(address, std::move(block));
    return {address, address, &free_block, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }
};

CountingAllocator counting;
c10::Allocator* others = nullptr;

}  // namespace

MemoryCount::MemoryCount() {
  others = c10::GetAllocator(c10::kCPU);
  of_all.now = of_all.peak = 0;
  c10::SetAllocator(c10::kCPU, &counting, kPriority);
}

MemoryCount::~MemoryCount() { c10::SetAllocator(c10::kCPU, others, kPriority); }

int64_t MemoryCount::now() const { return of_all.now; }
int64_t MemoryCount::peak() const { return of_all.peak; }
void MemoryCount::reset_peak() { of_all.peak = of_all.now.load(); }

ThreadMemoryCount::ThreadMemoryCount() { of_thread = std::make_shared<Bytes>(); }
ThreadMemoryCount::~ThreadMemoryCount() { of_thread.reset(); }
int64_t ThreadMemoryCount::peak() const { return of_thread->peak; }
void ThreadMemoryCount::reset_peak() { of_thread->peak = of_thread->now.load(); }

}  // namespace vgen::test
