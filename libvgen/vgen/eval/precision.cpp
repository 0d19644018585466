#include "vgen/eval/precision.h"

#include <torch/torch.h>

#include <algorithm>
#include <cstdio>

#include "vgen/codes/code_dataset.h"
#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/infer/gpt_engine.h"
#include "vgen/tensor/device.h"

namespace vgen::eval {

namespace {

struct Batch {
  torch::Tensor code_BN;  // int64
  std::vector<int64_t> labels;
};

std::vector<Batch> read_batches(const codes::CodeDataset& dataset, const gpt::GptConfig& model,
                                int64_t num_images, int64_t batch_size) {
  std::vector<Batch> batches;
  const int64_t middle = dataset.info().crop_sets[0].middle();
  for (int64_t first = 0; first < num_images; first += batch_size) {
    const int64_t size = std::min(batch_size, num_images - first);
    Batch batch{torch::empty({size, dataset.info().num_tokens()}, torch::kInt64), {}};
    for (int64_t i = 0; i < size; ++i) {
      auto* row = batch.code_BN[i].mutable_data_ptr<int64_t>();
      dataset.read(first + i, 0, middle, {row, static_cast<size_t>(batch.code_BN.size(1))});
      batch.labels.push_back(dataset.label(first + i));
      const int64_t last_code = batch.code_BN[i].max().item<int64_t>();
      require(last_code < model.vocab_size, ErrorCode::kDataCorrupt, dataset.name(first + i),
              ": holds the code ", last_code, ", but the model's vocabulary has ",
              model.vocab_size);
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

// Logits of all tokens given those before, (B, N, V).
torch::Tensor all_logits(infer::GptEngine& engine, const Batch& batch) {
  const int64_t size = batch.code_BN.size(0), num_tokens = batch.code_BN.size(1);
  std::vector<infer::GptPrompt> prompts;
  for (int64_t i = 0; i < size; ++i) {
    prompts.push_back({.slot = i, .label = batch.labels[static_cast<size_t>(i)]});
  }
  const auto codes = batch.code_BN.accessor<int64_t, 2>();
  std::vector<torch::Tensor> logits = {engine.prefill(prompts).slice(0, 0, size).clone()};
  std::vector<infer::GptStep> steps(static_cast<size_t>(size));
  for (int64_t n = 0; n + 1 < num_tokens; ++n) {
    for (int64_t i = 0; i < size; ++i) steps[static_cast<size_t>(i)] = {i, codes[i][n]};
    logits.push_back(engine.decode(steps).slice(0, 0, size).clone());
  }
  return torch::stack(logits, 1);
}

/// Sums over the tokens so far.
struct Tally {
  double agreed = 0, squares = 0, maximum = 0, loss = 0;
};

void add(Tally& tally, const torch::Tensor& logits_BNV, const torch::Tensor& exact_BNV,
         const torch::Tensor& code_BN) {
  const torch::Tensor difference = logits_BNV - exact_BNV;
  tally.agreed += logits_BNV.argmax(-1).eq(exact_BNV.argmax(-1)).sum().item<double>();
  tally.squares += difference.square().sum(torch::kFloat64).item<double>();
  tally.maximum = std::max(tally.maximum, difference.abs().max().item<double>());
  tally.loss += torch::nn::functional::cross_entropy(
                    logits_BNV.flatten(0, 1), code_BN.flatten(),
                    torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kSum))
                    .item<double>();
}

}  // namespace

PrecisionResult compare_precisions(const PrecisionConfig& config) {
  const torch::NoGradGuard no_grad;
  require(config.num_images >= 1 && config.batch_size >= 1, ErrorCode::kInvalidArgument,
          "evaluate precision: ", config.num_images, " images in batches of ", config.batch_size,
          ", expected both at least 1");
  set_num_threads(static_cast<int>(config.threads));
  const infer::LoadedGpt gpt = infer::load_gpt(config.checkpoint, config.gpt);
  const gpt::GptConfig& model = gpt.weights.config;
  require(model.model_type == "c2i", ErrorCode::kInvalidArgument, gpt.source,
          ": a text-conditional model; expected one of classes");
  const codes::CodeDataset dataset = codes::CodeDataset::open(config.codes);
  codes::check_fits(dataset.info(), {.grid = {model.grid_size(), model.grid_size()},
                                     .num_tokens = model.block_size,
                                     .codebook_size = model.vocab_size,
                                     .num_classes = model.num_classes});
  const int64_t num_images = std::min(config.num_images, dataset.size());
  const auto batches = read_batches(dataset, model, num_images, config.batch_size);

  std::vector<std::string> precisions = {"fp32"};
  for (const std::string& name : config.precisions) {
    if (name != "fp32") precisions.push_back(name);
  }
  PrecisionResult result;
  result.images = num_images;
  result.tokens = num_images * model.block_size;
  std::vector<std::unique_ptr<infer::GptEngine>> engines;
  for (const std::string& name : precisions) {
    engines.push_back(
        infer::make_gpt_engine(gpt.weights, {.precision = name, .num_slots = config.batch_size}));
  }
  std::vector<Tally> tallies(precisions.size());
  double sum = 0, squares = 0;
  Progress progress({.label = "compare", .unit = "images", .total = num_images});
  int64_t done = 0;
  for (const Batch& batch : batches) {
    const torch::Tensor exact_BNV = all_logits(*engines[0], batch);
    sum += exact_BNV.sum(torch::kFloat64).item<double>();
    squares += exact_BNV.square().sum(torch::kFloat64).item<double>();
    for (size_t i = 0; i < engines.size(); ++i) {
      const torch::Tensor logits_BNV = i == 0 ? exact_BNV : all_logits(*engines[i], batch);
      add(tallies[i], logits_BNV, exact_BNV, batch.code_BN);
    }
    progress.update(done += batch.code_BN.size(0), "");
  }
  progress.finish("");

  const auto tokens = static_cast<double>(result.tokens);
  const double values = tokens * static_cast<double>(model.vocab_size);
  result.logit_deviation = std::sqrt(squares / values - (sum / values) * (sum / values));
  for (size_t i = 0; i < engines.size(); ++i) {
    result.rows.push_back({.precision = precisions[i],
                           .agreement = tallies[i].agreed / tokens,
                           .logit_rms = std::sqrt(tallies[i].squares / values),
                           .logit_max = tallies[i].maximum,
                           .loss = tallies[i].loss / tokens,
                           .weight_bytes = engines[i]->weight_bytes()});
  }
  return result;
}

io::Json result_json(const PrecisionResult& result) {
  using io::Json;
  Json json = Json::object();
  json.set("images", Json::number(result.images));
  json.set("tokens", Json::number(result.tokens));
  json.set("logit_deviation", Json::number(result.logit_deviation));
  Json rows = Json::array();
  for (const PrecisionRow& row : result.rows) {
    Json item = Json::object();
    item.set("precision", Json::string(row.precision));
    item.set("agreement", Json::number(row.agreement));
    item.set("logit_rms", Json::number(row.logit_rms));
    item.set("logit_max", Json::number(row.logit_max));
    item.set("loss", Json::number(row.loss));
    item.set("weight_bytes", Json::number(row.weight_bytes));
    rows.add(std::move(item));
  }
  json.set("precisions", std::move(rows));
  return json;
}

std::string format_result(const PrecisionResult& result) {
  std::string text = str_cat(format_count(static_cast<uint64_t>(result.tokens)), " tokens of ",
                             result.images, " images; fp32's logits have a standard deviation of ",
                             format_fixed(result.logit_deviation, 3), "\n",
                             "precision  same token  logit rms  logit max    loss  weights\n");
  for (const PrecisionRow& row : result.rows) {
    char line[160];
    std::snprintf(line, sizeof(line), "%-9s  %9.2f%%  %9.4f  %9.4f  %6.4f  %s\n",
                  row.precision.c_str(), 100 * row.agreement, row.logit_rms, row.logit_max,
                  row.loss, format_bytes(static_cast<uint64_t>(row.weight_bytes)).c_str());
    text += line;
  }
  return text;
}

}  // namespace vgen::eval
