#pragma once
// What tensors on the CPU take, byte by byte.

#include <cstdint>

namespace vgen::test {

/// While this lives, the memory of new CPU tensors is counted, of all threads. One at a time.
class MemoryCount {
 public:
  MemoryCount();
  ~MemoryCount();
  MemoryCount(const MemoryCount&) = delete;
  MemoryCount& operator=(const MemoryCount&) = delete;

  /// Bytes of tensors that were made since and still exist.
  int64_t now() const;
  /// The most of them since the last reset_peak().
  int64_t peak() const;
  void reset_peak();
};

/// The same for what this thread makes, whichever thread frees it: within a MemoryCount, one at a
/// time in a thread.
class ThreadMemoryCount {
 public:
  ThreadMemoryCount();
  ~ThreadMemoryCount();
  ThreadMemoryCount(const ThreadMemoryCount&) = delete;
  ThreadMemoryCount& operator=(const ThreadMemoryCount&) = delete;

  int64_t peak() const;
  void reset_peak();
};

}  // namespace vgen::test
