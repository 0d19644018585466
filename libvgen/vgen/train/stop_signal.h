#pragma once
// Ending a run by SIGINT or SIGTERM without losing work.

#include <csignal>

namespace vgen::train {

/// While this lives, the first SIGINT or SIGTERM only sets a flag that the training loop asks for
/// after each step. A second one ends the process at once. One at a time.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();  ///< the handlers of before are back
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  /// The signal that came, 0 when none did.
  int number() const;

 private:
  struct sigaction old_int_, old_term_;
};

}  // namespace vgen::train
