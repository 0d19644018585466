#pragma once
// Large memory for packed weights and caches.

#include <cstddef>

namespace vgen::kernels {

/// Zeroed pages straight from the system, on huge pages where it has them: streaming through 4 KiB
/// pages costs a tenth of the bandwidth. A page that is never touched takes no memory. Move-only.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  /// Throws std::bad_alloc. size_bytes may be 0.
  explicit AlignedBuffer(size_t size_bytes);
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace vgen::kernels
