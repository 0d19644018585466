#pragma once
// Ranks as threads of one process.

#include <cstdint>
#include <functional>
#include <memory>

#include "vgen/dist/group.h"

namespace vgen::test {

/// Runs body on `size` threads, each with its group, over Gloo; each computes on one thread. On
/// CUDA each has a device of its own, by its rank, and NCCL besides. The first exception is thrown
/// again once all have ended. No assertions of Catch2 in there. A body that ends early takes its
/// connections along: end with a barrier.
void run_ranks(int64_t size, const std::function<void(std::unique_ptr<dist::Group> group)>& body,
               c10::DeviceType device = c10::kCPU);

}  // namespace vgen::test
