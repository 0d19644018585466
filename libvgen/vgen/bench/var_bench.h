#pragma once
// Speed and memory of drawing images with VAR: what `vgen bench var` prints.

#include <cstdint>
#include <string>
#include <vector>

namespace vgen::bench {

struct VarBenchConfig {
  std::string size = "d16";              ///< as var::var_size; random weights, of the tokenizer too
  std::string checkpoint;                ///< weights of a file instead, as infer::load_var
  std::string tokenizer;                 ///< the same, as infer::load_tokenizer
  std::vector<int64_t> patch_nums = {};  ///< of random weights; {} = those of `size`
  std::vector<std::string> precisions = {"fp32", "bf16", "int8"};
  std::vector<int64_t> batches = {1};  ///< images at a time; with guidance each takes two sequences
  double cfg_scale = 1.5;
  int64_t top_k = 900;
  double top_p = 0.96;
  std::string device = "cpu";
  int threads = 0;      ///< 0: one per core
  int64_t repeats = 3;  ///< timed runs of each case, after one that is not
};

struct VarBenchRow {
  std::string precision;
  int64_t batch = 0;
  double build_seconds = 0;   ///< packing the weights
  double seconds = 0;         ///< median of a batch, decoding included
  double decode_seconds = 0;  ///< of it
  double images_per_second = 0;
  double gflops = 0;       ///< of the transformer's matrix products, without attention
  double peak_rss_mb = 0;  ///< of the process so far
};

struct VarBenchReport {
  std::string engine;  ///< VarEngine::description of the last case
  int threads = 0;
  int64_t num_parameters = 0;  ///< of the transformer
  std::vector<VarBenchRow> rows;
};

/// Throws Error(kInvalidArgument) for a config out of range, and as load_var.
VarBenchReport bench_var(const VarBenchConfig& config);

/// A table; and the same as JSON.
std::string format_report(const VarBenchReport& report);
std::string report_json(const VarBenchReport& report);

}  // namespace vgen::bench
