#pragma once
// Speed and memory of drawing tokens with the GPT engine: what `vgen bench gpt` prints.

#include <cstdint>
#include <string>
#include <vector>

namespace vgen::bench {

struct GptBenchConfig {
  std::string size = "B";  ///< as gpt::gpt_size, random weights
  std::string checkpoint;  ///< weights of a file instead, as infer::load_gpt
  std::vector<std::string> precisions = {"fp32", "bf16", "int8"};
  std::vector<int64_t> batches = {1};  ///< images at a time; with guidance each takes two slots
  double cfg_scale = 4;
  int64_t top_k = 2000;
  int64_t num_tokens = 256;  ///< per image, a square number
  std::string device = "cpu";
  int threads = 0;      ///< 0: one per core
  int64_t repeats = 3;  ///< timed runs of each case, after a short one that is not
};

struct GptBenchRow {
  std::string precision;
  int64_t batch = 0;
  double build_seconds = 0;  ///< packing the weights
  double seconds = 0;        ///< median of a batch
  double tokens_per_second = 0;
  double weight_gb_per_second = 0;  ///< weights are read once per step
  double bandwidth_share = 0;       ///< of read_gb_per_second; 0 where that is
  double gflops = 0;                ///< of the linear layers
  double peak_rss_mb = 0;           ///< of the process so far
};

struct GptBenchReport {
  std::string engine;  ///< GptEngine::description of the last case
  int threads = 0;
  int64_t num_parameters = 0;
  double read_gb_per_second = 0;  ///< of this machine's memory, measured just before; CUDA: 0
  std::vector<GptBenchRow> rows;
};

/// Throws Error(kInvalidArgument) for a config out of range, and as load_gpt.
GptBenchReport bench_gpt(const GptBenchConfig& config);

/// A table; and the same as JSON.
std::string format_report(const GptBenchReport& report);
std::string report_json(const GptBenchReport& report);

}  // namespace vgen::bench
