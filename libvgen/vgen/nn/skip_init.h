#pragma once
// Models that are built to be loaded.

namespace vgen::nn {

/// While this lives, layers that this thread makes keep their large weights uninitialised, and
/// memory that is never touched costs nothing: for models whose every weight is loaded next.
class SkipInit {
 public:
  SkipInit();
  ~SkipInit();
  SkipInit(const SkipInit&) = delete;
  SkipInit& operator=(const SkipInit&) = delete;

  /// Whether one lives in this thread.
  static bool is_active();
};

}  // namespace vgen::nn
