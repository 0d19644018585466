#include "vgen/bench/var_bench.h"

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "vgen/bench/detail/measure.h"
#include "vgen/infer/var_generate.h"
#include "vgen/io/json.h"
#include "vgen/tensor/device.h"
#include "vgen/var/transformer.h"

namespace vgen::bench {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

infer::VarWeights weights_of(const VarBenchConfig& config) {
  if (!config.checkpoint.empty()) return infer::load_var(config.checkpoint).weights;
  torch::manual_seed(0);
  var::VarConfig size = var::var_size(config.size);
  if (!config.patch_nums.empty()) size.patch_nums = config.patch_nums;
  const var::VarTransformer model(size);
  return infer::var_weights(size, *model);
}

std::unique_ptr<infer::MultiScaleTokenizer> tokenizer_of(const VarBenchConfig& config,
                                                         const var::VarConfig& model,
                                                         const std::string& precision) {
  const c10::Device device = parse_device(config.device);
  const std::string compute = precision == "fp32" ? "fp32" : "bf16";
  if (!config.tokenizer.empty()) {
    auto loaded = infer::load_tokenizer(
        config.tokenizer,
        {.patch_nums = model.patch_nums, .device = device.str(), .precision = compute});
    require(!loaded.model->patch_nums().empty(), ErrorCode::kInvalidArgument, loaded.source,
            ": a tokenizer of one scale");
    return std::unique_ptr<infer::MultiScaleTokenizer>(
        static_cast<infer::MultiScaleTokenizer*>(loaded.model.release()));
  }
  tokenizer::MultiScaleVqvaeConfig shape;
  shape.patch_nums = model.patch_nums;
  shape.z_channels = model.z_channels;
  shape.codebook_size = model.codebook_size;
  tokenizer::MultiScaleVqvae module(shape);
  module->eval();
  for (torch::Tensor& parameter : module->parameters()) parameter.requires_grad_(false);
  module->set_compute_dtype(parse_precision(compute));
  module->to(device);
  return std::make_unique<infer::MultiScaleTokenizer>(std::move(module), device);
}

// Operations of the matrix products with every token of an image.
double flops_per_sequence(const var::VarConfig& config) {
  const auto width = static_cast<double>(config.width()),
             ffn = static_cast<double>(config.ffn_dim());
  const double block = width * (4 * width + 2 * ffn);
  const double weights =
      static_cast<double>(config.depth) * block + width * static_cast<double>(config.codebook_size);
  return 2 * weights * static_cast<double>(config.num_tokens());
}

VarBenchRow run_case(const VarBenchConfig& config, const infer::VarWeights& weights,
                     const std::string& precision, int64_t batch, VarBenchReport& report) {
  const infer::VarSettings settings{.cfg_scale = config.cfg_scale,
                                    .filter = {.top_k = config.top_k, .top_p = config.top_p}};
  const auto tokenizer = tokenizer_of(config, weights.config, precision);
  VarBenchRow row{.precision = precision, .batch = batch};
  auto start = Clock::now();
  const auto engine = make_var_engine(weights, {.precision = precision, .device = config.device});
  row.build_seconds = seconds_since(start);
  report.engine = engine->description();
  std::vector<infer::VarRequest> requests;
  for (int64_t i = 0; i < batch; ++i) {
    requests.push_back({.image = static_cast<uint64_t>(i), .label = i});
  }
  std::vector<std::pair<double, double>> seconds;  // of all, of decoding
  for (int64_t i = 0; i <= config.repeats; ++i) {
    start = Clock::now();
    const auto images = generate_var(*engine, *tokenizer, requests, settings);
    const double drawn = seconds_since(start);
    tokenizer->decode_latent(images.latent_BZhh).cpu();
    const double all = seconds_since(start);
    if (i > 0) seconds.emplace_back(all, all - drawn);
  }
  std::sort(seconds.begin(), seconds.end());
  std::tie(row.seconds, row.decode_seconds) = seconds[seconds.size() / 2];
  row.images_per_second = static_cast<double>(batch) / row.seconds;
  const auto sequences = static_cast<double>(batch * (settings.is_guided() ? 2 : 1));
  row.gflops =
      flops_per_sequence(weights.config) * sequences / (row.seconds - row.decode_seconds) / 1e9;
  row.peak_rss_mb = detail::peak_rss_mb();
  return row;
}

}  // namespace

VarBenchReport bench_var(const VarBenchConfig& config) {
  require(config.repeats >= 1, ErrorCode::kInvalidArgument, "repeats ", config.repeats,
          ": expected at least 1");
  const torch::NoGradGuard no_grad;
  VarBenchReport report;
  report.threads = set_num_threads(config.threads);
  const infer::VarWeights weights = weights_of(config);
  report.num_parameters = detail::num_elements(weights);
  for (const std::string& precision : config.precisions) {
    for (const int64_t batch : config.batches) {
      require(batch >= 1 && batch <= weights.config.num_classes, ErrorCode::kInvalidArgument,
              "batch ", batch, ": expected 1 to ", weights.config.num_classes);
      report.rows.push_back(run_case(config, weights, precision, batch, report));
    }
  }
  return report;
}

std::string format_report(const VarBenchReport& report) {
  std::string out = str_cat(report.engine, ", ", report.threads, " threads; medians\n",
                            "precision  batch  seconds  decoding  images/s  GFLOP/s  build s"
                            "  peak MB\n");
  for (const VarBenchRow& row : report.rows) {
    char line[160];
    std::snprintf(line, sizeof(line), "%-9s  %5lld  %7.3f  %8.3f  %8.2f  %7.0f  %7.2f  %7.0f\n",
                  row.precision.c_str(), static_cast<long long>(row.batch), row.seconds,
                  row.decode_seconds, row.images_per_second, row.gflops, row.build_seconds,
                  row.peak_rss_mb);
    out += line;
  }
  return out;
}

std::string report_json(const VarBenchReport& report) {
  io::Json json = io::Json::object();
  json.set("engine", io::Json::string(report.engine));
  json.set("threads", io::Json::number(static_cast<int64_t>(report.threads)));
  json.set("parameters", io::Json::number(report.num_parameters));
  io::Json rows = io::Json::array();
  for (const VarBenchRow& row : report.rows) {
    io::Json item = io::Json::object();
    item.set("precision", io::Json::string(row.precision));
    item.set("batch", io::Json::number(row.batch));
    item.set("seconds", io::Json::number(row.seconds));
    item.set("decode_seconds", io::Json::number(row.decode_seconds));
    item.set("images_per_second", io::Json::number(row.images_per_second));
    item.set("gflops", io::Json::number(row.gflops));
    item.set("build_seconds", io::Json::number(row.build_seconds));
    item.set("peak_rss_mb", io::Json::number(row.peak_rss_mb));
    rows.add(std::move(item));
  }
  json.set("rows", std::move(rows));
  return io::dump_json(json, 1) + "\n";
}

}  // namespace vgen::bench
