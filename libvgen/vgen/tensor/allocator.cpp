#include "vgen/tensor/allocator.h"

#include <malloc.h>

namespace vgen {

void keep_freed_memory() {
  // Blocks below the first value come from the heap, which shrinks only by more than the second.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
  mallopt(M_TOP_PAD, 64 << 20);
}

}  // namespace vgen
