#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "vgen/dist/detail/backends.h"

namespace vgen::dist::detail {

c10::intrusive_ptr<c10d::Backend> make_nccl(const BackendPlace& place) {
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = std::chrono::milliseconds(place.timeout_ms);
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(
      place.store, static_cast<int>(place.rank), static_cast<int>(place.size), std::move(options));
}

}  // namespace vgen::dist::detail
