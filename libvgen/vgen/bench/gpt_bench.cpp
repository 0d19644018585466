#include "vgen/bench/gpt_bench.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "vgen/bench/detail/measure.h"
#include "vgen/gpt/transformer.h"
#include "vgen/infer/gpt_generate.h"
#include "vgen/infer/load_gpt.h"
#include "vgen/io/json.h"
#include "vgen/kernels/aligned_buffer.h"
#include "vgen/tensor/device.h"

namespace vgen::bench {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Sums 256 MiB with all threads: the best of five.
double read_gb_per_second() {
  constexpr int64_t kWords = (int64_t{256} << 20) / 8;
  const kernels::AlignedBuffer buffer(kWords * 8);
  auto* words = reinterpret_cast<uint64_t*>(buffer.data());
  std::fill_n(words, kWords, 1);
  std::vector<uint64_t> sums(at::get_num_threads() * 16);
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = Clock::now();
    at::parallel_for(0, kWords, 1, [&](int64_t begin, int64_t end) {
      uint64_t sum = 0;
      for (int64_t w = begin; w < end; ++w) sum += words[w];
      sums[at::get_thread_num() * 16] += sum;
    });
    best = std::min(best, seconds_since(start));
  }
  return sums[0] == 0 ? 0 : kWords * 8 / best / 1e9;
}

infer::GptWeights random_weights(const GptBenchConfig& config) {
  torch::manual_seed(0);
  gpt::GptConfig size = gpt::gpt_size(config.size);
  size.block_size = config.num_tokens;
  gpt::Transformer model(size);
  const torch::NoGradGuard no_grad;
  model->named_parameters()["output.weight"].normal_(0, 0.02);
  return infer::gpt_weights(size, *model);
}

GptBenchRow run_case(const GptBenchConfig& config, const infer::GptWeights& weights,
                     const std::string& precision, int64_t batch, GptBenchReport& report) {
  const infer::GenerateSettings settings{.cfg_scale = config.cfg_scale,
                                         .filter = {.top_k = config.top_k}};
  GptBenchRow row{.precision = precision, .batch = batch};
  auto start = Clock::now();
  const auto engine = make_gpt_engine(weights, {.precision = precision,
                                                .num_slots = batch * settings.slots_per_image(),
                                                .device = config.device});
  row.build_seconds = seconds_since(start);
  report.engine = engine->description();
  std::vector<infer::GenerateRequest> requests;
  for (int64_t i = 0; i < batch; ++i) {
    requests.push_back({.image = static_cast<uint64_t>(i), .prompt = {.label = i}});
  }
  std::vector<double> seconds;
  for (int64_t i = 0; i <= config.repeats; ++i) {
    start = Clock::now();
    generate(*engine, requests, settings);
    if (i > 0 || config.repeats == 0) seconds.push_back(seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  row.seconds = seconds[seconds.size() / 2];
  const auto num_steps = static_cast<double>(engine->config().block_size);
  row.tokens_per_second = num_steps * static_cast<double>(batch) / row.seconds;
  row.weight_gb_per_second =
      static_cast<double>(engine->weight_bytes()) * num_steps / row.seconds / 1e9;
  if (report.read_gb_per_second > 0) {
    row.bandwidth_share = row.weight_gb_per_second / report.read_gb_per_second;
  }
  const double bytes_per_weight = precision == "fp32" ? 4 : precision == "bf16" ? 2 : 1;
  row.gflops = row.weight_gb_per_second / bytes_per_weight * 2 *
               static_cast<double>(batch * settings.slots_per_image());
  row.peak_rss_mb = detail::peak_rss_mb();
  return row;
}

}  // namespace

GptBenchReport bench_gpt(const GptBenchConfig& config) {
  require(config.repeats >= 0, ErrorCode::kInvalidArgument, "repeats ", config.repeats,
          ": expected at least 0");
  GptBenchReport report;
  report.threads = set_num_threads(config.threads);
  if (parse_device(config.device).is_cpu()) report.read_gb_per_second = read_gb_per_second();
  const infer::GptWeights weights =
      config.checkpoint.empty()
          ? random_weights(config)
          : infer::load_gpt(config.checkpoint, {.block_size = config.num_tokens}).weights;
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

std::string format_report(const GptBenchReport& report) {
  const bool has_memory = report.read_gb_per_second > 0;
  std::string out = str_cat(report.engine, ", ", report.threads, " threads");
  if (has_memory) {
    out += str_cat(", memory reads ", format_fixed(report.read_gb_per_second, 1), " GB/s");
  }
  out += str_cat("\nprecision  batch  seconds  tokens/s  weights GB/s",
                 has_memory ? "  of memory" : "", "  GFLOP/s  build s  peak MB\n");
  for (const GptBenchRow& row : report.rows) {
    char line[160], share[16] = "";
    if (has_memory) std::snprintf(share, sizeof(share), "  %8.0f%%", row.bandwidth_share * 100);
    std::snprintf(line, sizeof(line), "%-9s  %5lld  %7.3f  %8.1f  %12.1f%s  %7.0f  %7.2f  %7.0f\n",
                  row.precision.c_str(), static_cast<long long>(row.batch), row.seconds,
                  row.tokens_per_second, row.weight_gb_per_second, share, row.gflops,
                  row.build_seconds, row.peak_rss_mb);
    out += line;
  }
  return out;
}

std::string report_json(const GptBenchReport& report) {
  io::Json json = io::Json::object();
  json.set("engine", io::Json::string(report.engine));
  json.set("threads", io::Json::number(static_cast<int64_t>(report.threads)));
  json.set("parameters", io::Json::number(report.num_parameters));
  const bool has_memory = report.read_gb_per_second > 0;
  if (has_memory) json.set("read_gb_per_second", io::Json::number(report.read_gb_per_second));
  io::Json rows = io::Json::array();
  for (const GptBenchRow& row : report.rows) {
    io::Json item = io::Json::object();
    item.set("precision", io::Json::string(row.precision));
    item.set("batch", io::Json::number(row.batch));
    item.set("seconds", io::Json::number(row.seconds));
    item.set("tokens_per_second", io::Json::number(row.tokens_per_second));
    item.set("weight_gb_per_second", io::Json::number(row.weight_gb_per_second));
    if (has_memory) item.set("bandwidth_share", io::Json::number(row.bandwidth_share));
    item.set("gflops", io::Json::number(row.gflops));
    item.set("build_seconds", io::Json::number(row.build_seconds));
    item.set("peak_rss_mb", io::Json::number(row.peak_rss_mb));
    rows.add(std::move(item));
  }
  json.set("rows", std::move(rows));
  return io::dump_json(json, 1) + "\n";
}

}  // namespace vgen::bench
