#pragma once
// How the ranks of a run find each other in a store, again after some of them were started anew.

#include <cstdint>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

namespace vgen::dist::detail {

using StorePtr = c10::intrusive_ptr<c10d::Store>;

struct Meeting {
  StorePtr store;                  ///< with keys of these very processes
  std::vector<std::string> hosts;  ///< "gpu03 process 4711" of each rank
};

/// Every rank tells its `identity`, several lines, and waits until all are there; all go on with
/// the same processes or none does, whatever earlier processes have left in the store. Throws
/// Error(kUnavailable) on every rank that is there, with the ranks that did not come in time, and
/// Error(kInvalidArgument) with the first line in which a rank differs from rank 0. Where a rank
/// declines, Error(kUnavailable) with that rank, its host and its reason: at once if all others are
/// there, else 5 s later, so that they can hear of it too.
Meeting meet(const StorePtr& store, int64_t rank, int64_t size, const std::string& identity,
             int64_t timeout_ms);

/// What a rank does instead of meet() that will not join, because of `reason`, one line. Returns
/// when the others have heard of it, or after about `time_ms`. Throws what c10d throws where the
/// store is gone.
void decline(const StorePtr& store, int64_t rank, int64_t size, const std::string& reason,
             int64_t time_ms);

/// "rank 2 of 8", "ranks 2, 5 of 8"; of many the first ones.
std::string list_ranks(const std::vector<int64_t>& ranks, int64_t size);

/// Waits until each rank has set the key "WHAT/RANK". Returns the ranks that have not in time.
std::vector<int64_t> missing_after(c10d::Store& store, const std::string& what, int64_t size,
                                   int64_t time_ms);

std::string text_of(c10d::Store& store, const std::string& key);

}  // namespace vgen::dist::detail
