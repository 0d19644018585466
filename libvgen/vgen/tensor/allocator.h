#pragma once
// Where tensors on the CPU get their memory.
//
// glibc returns large blocks to the system at once, and the page faults of getting them back cost
// up to two thirds of the time; told to keep them, its heap breaks into pieces that no activation
// fits into, and grows to twice what is in use. So blocks of at least kLargeBlock are kept here,
// on huge pages where the system has them. A freed block serves the next request of about its size.
// In use and kept together stay below 1.1 times the most that was ever in use. Where they would
// not, a new block is made of pages of those that lay idle longest: moved, not copied (mremap), so
// that the system need not clear fresh ones.

#include <cstdint>

namespace vgen {

inline constexpr int64_t kLargeBlock = int64_t{4} << 20;  ///< bytes; smaller ones are glibc's

/// For all CPU tensors from now on, and glibc is told to keep what is freed below kLargeBlock.
/// Called once, at the start of main, before the first tensor.
void install_tensor_allocator();

/// Bytes in large blocks. Any thread.
struct LargeBlockStats {
  int64_t in_use = 0;
  int64_t peak_in_use = 0;
  int64_t kept = 0;    ///< free, and ready for the next request
  int64_t mapped = 0;  ///< asked of the system so far, what it has back included
};
LargeBlockStats large_block_stats();

}  // namespace vgen
