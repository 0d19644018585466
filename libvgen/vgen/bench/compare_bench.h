#pragma once
// LlamaGen's GPT against VAR at the same size of image, from noise to pixels: what `vgen bench
// compare` prints.

#include <cstdint>
#include <string>
#include <vector>

namespace vgen::bench {

/// Random weights on both sides; both guided, so that an image takes two sequences.
struct CompareBenchConfig {
  std::string gpt_size = "L";    ///< as gpt::gpt_size; VQ-16 decodes its codes
  std::string var_size = "d16";  ///< as var::var_size; its own tokenizer, 16 pixels a cell too
  /// Sides of VAR's scales, {} = those of var_size. The last one is the side of the GPT's grid.
  std::vector<int64_t> patch_nums = {};
  std::vector<std::string> precisions = {"fp32", "bf16", "int8"};
  std::vector<int64_t> batches = {1};  ///< images at a time
  std::string device = "cpu";
  int threads = 0;      ///< 0: one per core
  int64_t repeats = 3;  ///< timed runs of each case, after one that is not
};

/// Medians over the runs of a batch, divided by its images.
struct CompareSide {
  double seconds = 0;         ///< codes and pixels
  double decode_seconds = 0;  ///< of them the pixels
};

struct CompareBenchRow {
  std::string precision;
  int64_t batch = 0;
  CompareSide gpt, var;
  double ratio = 0;  ///< seconds of the GPT over VAR's
};

struct CompareBenchReport {
  std::string gpt, var;  ///< "GPT-L, 343 million parameters, 256 codes, VQ-16"
  std::string engine;    ///< VarEngine::description of the last case
  int64_t image_size = 0;
  int threads = 0;
  std::vector<CompareBenchRow> rows;
};

/// The benches of the GPT, of the tokenizer's decoder and of VAR, one after the other. Throws
/// Error(kInvalidArgument) for a config out of range.
CompareBenchReport bench_compare(const CompareBenchConfig& config);

/// A table; and the same as JSON.
std::string format_report(const CompareBenchReport& report);
std::string report_json(const CompareBenchReport& report);

}  // namespace vgen::bench
