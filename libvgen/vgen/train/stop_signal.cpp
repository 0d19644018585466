#include "vgen/train/stop_signal.h"

#include <atomic>

namespace vgen::train {

namespace {

// A signal handler reaches nothing but statics.
std::atomic<int> received{0};

void on_signal(int number) { received.store(number); }

}  // namespace

StopSignal::StopSignal() {
  received.store(0);
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART | SA_RESETHAND;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &old_int_);
  sigaction(SIGTERM, &action, &old_term_);
}

StopSignal::~StopSignal() {
  sigaction(SIGINT, &old_int_, nullptr);
  sigaction(SIGTERM, &old_term_, nullptr);
}

int StopSignal::number() const { return received.load(); }

}  // namespace vgen::train
