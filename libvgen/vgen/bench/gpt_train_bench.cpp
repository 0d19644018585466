#include "vgen/bench/gpt_train_bench.h"

#include <torch/torch.h>

#include <cstdio>

#include "vgen/bench/detail/measure.h"
#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/dist/strategy.h"
#include "vgen/io/json.h"
#include "vgen/tensor/device.h"
#include "vgen/train/gpt_task.h"
#include "vgen/train/matmul_peak.h"
#include "vgen/train/trainer.h"

namespace vgen::bench {

namespace {

/// Random codes and labels instead of a loader's.
class FixedBatchTask : public train::GptTask {
 public:
  FixedBatchTask(const train::GptRunConfig& config, const train::TaskContext& context)
      : GptTask(config, context) {
    const int64_t batch = context.micro_batch_size;
    batch_.code_BT =
        torch::randint(config.model.vocab_size, {batch, config.model.block_size}, torch::kInt64);
    batch_.label_B = torch::randint(config.model.num_classes, {batch}, torch::kInt64);
    for (int64_t i = 0; i < batch; ++i) batch_.index.push_back(i);
  }
  void next_batches(int64_t count) override {
    set_batches(std::vector<codes::CodeBatch>(static_cast<size_t>(count), batch_));
  }
  int64_t batches_per_epoch() const override { return 1; }

 private:
  codes::CodeBatch batch_;
};

GptTrainBenchRow run_case(const GptTrainBenchConfig& config, const std::string& precision) {
  train::GptRunConfig settings;
  settings.run.steps = config.repeats + 1;
  settings.run.global_batch_size = config.batch;
  settings.run.precision = precision;
  settings.model = gpt::gpt_size(config.size);
  settings.model.block_size = config.num_tokens;
  settings.optimizer = {.kind = "adamw", .weight_decay = 0.05, .decay_min_dims = 2};
  const c10::Device device = parse_device(config.device);
  const c10::ScalarType dtype = parse_precision(precision);
  const double peak_flops = train::measure_matmul_flops(device, dtype);

  torch::manual_seed(0);
  FixedBatchTask task(settings, {.device = device,
                                 .precision = dtype,
                                 .micro_batch_size = config.batch,
                                 .is_training = false});
  const auto strategy = dist::make_strategy({});
  train::Trainer trainer(settings.run, task, *strategy, device);
  detail::reset_peak_rss();
  GptTrainBenchRow row{.precision = precision};
  row.seconds = detail::median_seconds(device, config.repeats, [&] { trainer.step(); });
  const train::Workload workload = task.workload();
  const auto samples = static_cast<double>(config.batch);
  row.tokens_per_second = samples * static_cast<double>(workload.tokens_per_sample) / row.seconds;
  row.gflops = samples * workload.flops_per_sample / row.seconds / 1e9;
  row.mfu = row.gflops * 1e9 / peak_flops;
  row.peak_rss_mb = detail::peak_rss_mb();
  return row;
}

}  // namespace

GptTrainBenchReport bench_gpt_train(const GptTrainBenchConfig& config) {
  require(config.batch >= 1 && config.repeats >= 1, ErrorCode::kInvalidArgument, "bench: batch ",
          config.batch, " and repeats ", config.repeats, ", expected both at least 1");
  GptTrainBenchReport report{.device = parse_device(config.device).str(),
                             .threads = set_num_threads(config.threads),
                             .rows = {}};
  for (const std::string& precision : config.precisions) {
    report.rows.push_back(run_case(config, precision));
  }
  return report;
}

std::string format_report(const GptTrainBenchReport& report) {
  std::string out =
      str_cat(report.device, ", ", report.threads, " threads; medians\n",
              "precision  seconds  tokens/s  GFLOP/s  of a matrix product  peak MB\n");
  for (const GptTrainBenchRow& row : report.rows) {
    char line[160];
    std::snprintf(line, sizeof(line), "%-9s  %7.3f  %8.1f  %7.0f  %18.0f%%  %7.0f\n",
                  row.precision.c_str(), row.seconds, row.tokens_per_second, row.gflops,
                  row.mfu * 100, row.peak_rss_mb);
    out += line;
  }
  return out;
}

std::string report_json(const GptTrainBenchReport& report) {
  io::Json json = io::Json::object();
  json.set("device", io::Json::string(report.device));
  json.set("threads", io::Json::number(static_cast<int64_t>(report.threads)));
  io::Json rows = io::Json::array();
  for (const GptTrainBenchRow& row : report.rows) {
    io::Json item = io::Json::object();
    item.set("precision", io::Json::string(row.precision));
    item.set("seconds", io::Json::number(row.seconds));
    item.set("tokens_per_second", io::Json::number(row.tokens_per_second));
    item.set("gflops", io::Json::number(row.gflops));
    item.set("mfu", io::Json::number(row.mfu));
    item.set("peak_rss_mb", io::Json::number(row.peak_rss_mb));
    rows.add(std::move(item));
  }
  json.set("rows", std::move(rows));
  return io::dump_json(json, 1) + "\n";
}

}  // namespace vgen::bench
