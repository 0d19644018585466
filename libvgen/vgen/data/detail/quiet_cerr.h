#pragma once
// OpenCV tells std::cerr what it thinks of a damaged image, over several lines and without the
// path. Our own errors have both in one.

namespace vgen::data::detail {

/// While one lives, what its thread writes to std::cerr is dropped; other threads and stdio's
/// stderr are not touched. The first one puts a filter before the buffer of std::cerr, for good.
class QuietCerr {
 public:
  QuietCerr();
  ~QuietCerr();
  QuietCerr(const QuietCerr&) = delete;
  QuietCerr& operator=(const QuietCerr&) = delete;
};

}  // namespace vgen::data::detail
