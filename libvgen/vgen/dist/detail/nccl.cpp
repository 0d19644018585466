#include <stdlib.h>

#include <chrono>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "vgen/dist/detail/backends.h"

namespace vgen::dist::detail {

c10::intrusive_ptr<c10d::Backend> make_nccl(const BackendPlace& place) {
  auto options = c10d::ProcessGroupNCCL::Options::create();
  // Its watchdog would end the process as soon as a collective has failed, before Group::fail() has
  // asked who is at fault: it shall only clean up, and later than Gloo's own timeouts.
  ::setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", /*overwrite=*/0);
  options->timeout = std::chrono::milliseconds(place.timeout_ms) + std::chrono::minutes(1);
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(
      place.store, static_cast<int>(place.rank), static_cast<int>(place.size), std::move(options));
}

}  // namespace vgen::dist::detail
