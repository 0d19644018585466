#pragma once
// c10d's backends, the only files that see their headers.

#include <cstdint>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace vgen::dist::detail {

struct BackendPlace {
  c10::intrusive_ptr<c10d::Store> store;
  int64_t rank = 0;
  int64_t size = 1;
  int64_t timeout_ms = 0;
  std::string address = {};    ///< Gloo: of this host, towards the others
  std::string interface = {};  ///< Gloo: instead, if it is not empty
};

/// Meets the other ranks. Throws what c10d throws.
c10::intrusive_ptr<c10d::Backend> make_gloo(const BackendPlace& place);
/// Throws Error(kUnavailable) in a build without CUDA.
c10::intrusive_ptr<c10d::Backend> make_nccl(const BackendPlace& place);

/// The address of this host from which `master` is reached; "127.0.0.1" where that fails.
std::string address_towards(const std::string& master);

}  // namespace vgen::dist::detail
