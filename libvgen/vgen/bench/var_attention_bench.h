#pragma once
// What the block structure of VAR's attention is worth: what `vgen bench var-attention` prints.

#include <cstdint>
#include <string>
#include <vector>

namespace vgen::bench {

struct VarAttentionBenchConfig {
  std::string size = "d16";  ///< as var::var_size
  std::vector<std::string> precisions = {"fp32"};
  int64_t batch = 2;  ///< samples of a step
  /// Of var::query_groups, one case each: 1 = each scale alone, 0 = all tokens in one masked call.
  std::vector<int64_t> max_masked_tokens = {1, 256, 0};
  std::string device = "cpu";
  int threads = 0;      ///< 0: one per core
  int64_t repeats = 3;  ///< timed runs of each case, after one that is not
};

struct VarAttentionBenchRow {
  std::string precision;
  int64_t max_masked_tokens = 0;
  int64_t calls = 0;           ///< of scaled dot product attention
  double product_share = 0;    ///< pairs of query and key that are multiplied, of L x L
  double forward_seconds = 0;  ///< medians, one layer, its two projections included
  double step_seconds = 0;     ///< forward and backward
};

struct VarAttentionBenchReport {
  std::string device;
  int threads = 0;
  std::vector<VarAttentionBenchRow> rows;
};

/// One layer of training on random hidden states, under autocast where the precision is not fp32.
/// Throws Error(kInvalidArgument) for a config out of range.
VarAttentionBenchReport bench_var_attention(const VarAttentionBenchConfig& config);

/// A table; and the same as JSON.
std::string format_report(const VarAttentionBenchReport& report);
std::string report_json(const VarAttentionBenchReport& report);

}  // namespace vgen::bench
