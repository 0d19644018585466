#pragma once
// Speed and memory of the tokenizer with random weights: what `vgen bench tokenizer` prints.

#include <cstdint>
#include <string>
#include <vector>

namespace vgen::bench {

struct TokenizerBenchConfig {
  std::string model = "VQ-16";  ///< or "VQ-8"
  /// Weights of that model, as infer::load_tokenizer takes them, for encode and decode: measured as
  /// they are used, out of a mapped file. "": random ones in memory.
  std::string weights = "";
  /// "encode" (image to codes), "decode" (codes to image), "train" (generator and discriminator
  /// step with LPIPS, PatchGAN and Adam), "search" (nearest code of the latents of the images
  /// alone, in fp32 whatever `precisions` says, against the plain formula)
  std::vector<std::string> modes = {"encode", "decode", "train"};
  std::vector<int64_t> batches = {1, 8};  ///< of encode, decode and search
  int64_t train_batch = 2;
  int64_t image_size = 256;
  std::vector<std::string> precisions = {"fp32", "bf16"};
  std::string device = "auto";
  int threads = 0;      ///< 0: one per core
  int64_t repeats = 5;  ///< timed runs of each case, after one that is not
};

struct TokenizerBenchRow {
  std::string mode, precision;
  int64_t batch = 0;
  double seconds = 0;  ///< median
  double images_per_second = 0;
  double gflops = 0;       ///< per second, counted as direct convolutions; forward and backward
  double gemm_share = 0;   ///< of the speed of a matrix product measured just before. Above 1 where
                           ///< a convolution needs fewer operations than the direct one
  double peak_rss_mb = 0;  ///< of the process during this case; 0 where the system cannot tell
};

/// kernels::nearest_code, and the plain formula: a matrix of all distances, then its argmin.
/// Memory is that of the process; where other modes ran before, what they left counts too.
struct SearchBenchRow {
  int64_t rows = 0, codes = 0, dim = 0;   ///< latents of all images, codebook, channels
  double seconds = 0, plain_seconds = 0;  ///< medians
  double speedup = 0;                     ///< plain_seconds over seconds
  double peak_rss_mb = 0, plain_peak_rss_mb = 0;
  double same_codes = 0;  ///< share of the rows for which both find the same; rounding decides ties
};

struct TokenizerBenchReport {
  std::string device, cpu_isa;
  int threads = 0;
  std::vector<TokenizerBenchRow> rows;
  std::vector<SearchBenchRow> search;
};

/// Throws Error(kInvalidArgument) for a config out of range, and what load_tokenizer throws.
TokenizerBenchReport bench_tokenizer(const TokenizerBenchConfig& config);

/// A table; and the same as JSON.
std::string format_report(const TokenizerBenchReport& report);
std::string report_json(const TokenizerBenchReport& report);

}  // namespace vgen::bench
