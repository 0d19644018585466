#pragma once
// Speed and memory of training the transformers: what `vgen bench gpt-train` and `var-train` print.

#include <cstdint>
#include <string>
#include <vector>

namespace vgen::bench {

struct TrainBenchConfig {
  std::string size = "B";  ///< as gpt::gpt_size or var::var_size, random weights
  std::vector<std::string> precisions = {"fp32"};
  int64_t batch = 8;         ///< samples of a step
  int64_t num_tokens = 256;  ///< GPT: per sample, a square number
  std::string device = "cpu";
  int threads = 0;      ///< 0: one per core
  int64_t repeats = 3;  ///< timed steps, after one that is not
};

struct TrainBenchRow {
  std::string precision;
  double seconds = 0;  ///< median of a step: forward, backward, clipping, AdamW
  double tokens_per_second = 0;
  double gflops = 0;       ///< as train::Workload counts
  double mfu = 0;          ///< share of train::measure_matmul_flops
  double peak_rss_mb = 0;  ///< of the process during this case
  double device_mb = 0;    ///< on CUDA: the most that tensors took of the device so far
};

struct TrainBenchReport {
  std::string device;
  int threads = 0;
  std::vector<TrainBenchRow> rows;
};

/// The step is the trainer's own, with dropout and label dropout as published, on fixed random
/// codes. Throws Error(kInvalidArgument).
TrainBenchReport bench_gpt_train(const TrainBenchConfig& config);
/// The same of VAR, its inputs made of the codes in each step.
TrainBenchReport bench_var_train(const TrainBenchConfig& config);

/// A table; and the same as JSON.
std::string format_report(const TrainBenchReport& report);
std::string report_json(const TrainBenchReport& report);

}  // namespace vgen::bench
