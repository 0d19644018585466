#pragma once
// What bf16 and int8 weights change in a GPT: its logits and tokens beside those in fp32, on codes
// of real images. `vgen evaluate precision`.

#include <cstdint>
#include <string>
#include <vector>

#include "vgen/infer/load_gpt.h"
#include "vgen/io/json.h"

namespace vgen::eval {

struct PrecisionConfig {
  std::string checkpoint;  ///< as infer::load_gpt, a class-conditional model
  infer::GptOptions gpt;   ///< weights, config, heads
  std::string codes;       ///< as codes::CodeDataset::open: the middle crop of each image
  std::vector<std::string> precisions = {"bf16", "int8"};
  int64_t num_images = 64;  ///< the first of them; all where there are fewer
  int64_t batch_size = 16;  ///< images at a time
  int64_t threads = 0;      ///< of LibTorch; 0 = one per core
};

/// Every token of every image is predicted from the true tokens before it.
struct PrecisionRow {
  std::string precision;
  double agreement = 0;      ///< share of predictions whose likeliest token is fp32's
  double logit_rms = 0;      ///< root mean square of the differences to fp32's logits
  double logit_max = 0;      ///< largest difference
  double loss = 0;           ///< mean cross entropy of the true tokens, nats
  int64_t weight_bytes = 0;  ///< that every step reads
};

struct PrecisionResult {
  int64_t images = 0, tokens = 0;
  double logit_deviation = 0;  ///< standard deviation of fp32's logits: what logit_rms refers to
  std::vector<PrecisionRow> rows;  ///< fp32 first
};

/// Throws Error: as the loaders do; kInvalidArgument where codes and model do not fit.
PrecisionResult compare_precisions(const PrecisionConfig& config);

io::Json result_json(const PrecisionResult& result);
/// A table for people.
std::string format_result(const PrecisionResult& result);

}  // namespace vgen::eval
