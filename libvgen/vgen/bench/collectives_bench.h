#pragma once
// Bandwidth of the collectives that training uses, between the ranks of this run: what `vgen bench
// collectives` prints.

#include <cstdint>
#include <string>
#include <vector>

namespace vgen::bench {

struct CollectivesBenchConfig {
  /// "all_gather", "reduce_scatter", "all_reduce"
  std::vector<std::string> collectives = {"all_gather", "reduce_scatter", "all_reduce"};
  /// Of the whole: what a gather makes, what a sum takes. Rounded down to equal parts of the ranks.
  std::vector<int64_t> sizes_kib = {64, 256, 1024, 4096, 16384, 65536};
  std::string dtype = "fp32";  ///< of the elements: fp32, bf16, fp16
  std::string device = "auto";
  int threads = 0;          ///< 0: the cores of this machine, shared by its ranks
  int64_t repeats = 5;      ///< timed runs of each case, after one that is not
  int64_t timeout_s = 120;  ///< for a rank to join, and for every collective
};

struct CollectiveBenchRow {
  std::string collective;
  int64_t size_bytes = 0;
  double seconds = 0;  ///< median, of the slowest rank
  /// size_bytes over seconds; and what that asks of a link, as rings send it: times (n - 1) / n,
  /// twice that for an all-reduce. 10^9 bytes/s, both as NVIDIA's nccl-tests define them.
  double algorithm_gb_s = 0;
  double bus_gb_s = 0;
};

struct CollectivesBenchReport {
  int64_t rank = 0;  ///< of this process; all ranks get the same report otherwise
  int64_t ranks = 1, ranks_per_host = 0;  ///< ranks_per_host 0: the launcher does not say
  std::string launcher, device, dtype;
  std::vector<CollectiveBenchRow> rows;
};

/// Collective over the processes that the environment tells of (dist/launch.h): each calls it with
/// the same config. Throws Error(kInvalidArgument) where this is the only process, and for a config
/// out of range.
CollectivesBenchReport bench_collectives(const CollectivesBenchConfig& config);

/// Starts this program anew as `ranks` processes on this machine, with `arguments` and the
/// environment of a launcher, and waits for them. Rank 0 prints where this process does. Throws
/// Error(kInvalidArgument) under a launcher, Error(kUnavailable) when a rank fails; the others are
/// ended then.
void run_local_ranks(int64_t ranks, const std::vector<std::string>& arguments);

/// A table; and the same as JSON.
std::string format_report(const CollectivesBenchReport& report);
std::string report_json(const CollectivesBenchReport& report);

}  // namespace vgen::bench
