#include "vgen/bench/train_bench.h"

#include <torch/torch.h>

#include <cstdio>
#include <functional>

#include "vgen/bench/detail/measure.h"
#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/dist/strategy.h"
#include "vgen/io/json.h"
#include "vgen/tensor/device.h"
#include "vgen/train/gpt_task.h"
#include "vgen/train/matmul_peak.h"
#include "vgen/train/trainer.h"
#include "vgen/train/var_task.h"

namespace vgen::bench {

namespace {

using Context = train::TaskContext;
using MakeTask = std::function<std::unique_ptr<train::Task>(train::RunConfig, const Context&)>;

codes::CodeBatch random_batch(int64_t batch, int64_t tokens, int64_t vocab, int64_t classes) {
  codes::CodeBatch codes;
  codes.code_BT = torch::randint(vocab, {batch, tokens}, torch::kInt64);
  codes.label_B = torch::randint(classes, {batch}, torch::kInt64);
  for (int64_t i = 0; i < batch; ++i) codes.index.push_back(i);
  return codes;
}

/// A task with the same random codes in every step instead of a loader's.
template <class Base>
class FixedBatchTask : public Base {
 public:
  template <class Config>
  FixedBatchTask(const Config& config, const Context& context, codes::CodeBatch batch)
      : Base(config, context), batch_(std::move(batch)) {}
  void next_batches(int64_t count) override {
    this->set_batches(std::vector<codes::CodeBatch>(static_cast<size_t>(count), batch_));
  }
  int64_t batches_per_epoch() const override { return 1; }

 private:
  codes::CodeBatch batch_;
};

std::unique_ptr<train::Task> make_gpt(const TrainBenchConfig& config, train::RunConfig run,
                                      const Context& context) {
  train::GptRunConfig settings;
  settings.run = std::move(run);
  settings.model = gpt::gpt_size(config.size);
  settings.model.block_size = config.num_tokens;
  settings.optimizer = {.kind = "adamw", .weight_decay = 0.05, .decay_min_dims = 2};
  return std::make_unique<FixedBatchTask<train::GptTask>>(
      settings, context,
      random_batch(config.batch, config.num_tokens, settings.model.vocab_size,
                   settings.model.num_classes));
}

struct FixedVarTask : FixedBatchTask<train::VarTask> {
  using FixedBatchTask::FixedBatchTask;
  using VarTask::set_tokenizer;
};

// A tokenizer that is only asked for its quantizer: narrow around it.
std::unique_ptr<infer::MultiScaleTokenizer> quantizer_of(const var::VarConfig& model,
                                                         c10::Device device) {
  tokenizer::MultiScaleVqvaeConfig shape;
  shape.ch = 32;
  shape.patch_nums = model.patch_nums;
  tokenizer::MultiScaleVqvae module(shape);
  module->eval();
  module->to(device);
  return std::make_unique<infer::MultiScaleTokenizer>(std::move(module), device);
}

std::unique_ptr<train::Task> make_var(const TrainBenchConfig& config, train::RunConfig run,
                                      const Context& context) {
  train::VarRunConfig settings;
  settings.run = std::move(run);
  settings.model = var::var_size(config.size);
  settings.optimizer = {.kind = "adamw", .weight_decay = 0.05, .decay_min_dims = 2};
  auto task = std::make_unique<FixedVarTask>(
      settings, context,
      random_batch(config.batch, settings.model.num_tokens(), settings.model.codebook_size,
                   settings.model.num_classes));
  task->set_tokenizer(quantizer_of(settings.model, context.device));
  return task;
}

TrainBenchRow run_case(const TrainBenchConfig& config, const std::string& precision,
                       const MakeTask& make_task) {
  train::RunConfig run;
  run.steps = config.repeats + 1;
  run.global_batch_size = config.batch;
  run.precision = precision;
  const c10::Device device = parse_device(config.device);
  const c10::ScalarType dtype = parse_precision(precision);
  const double peak_flops = train::measure_matmul_flops(device, dtype);

  torch::manual_seed(0);
  const auto task = make_task(run, {.device = device,
                                    .precision = dtype,
                                    .micro_batch_size = config.batch,
                                    .is_training = false});
  const auto strategy = dist::single_process();
  train::Trainer trainer(run, *task, *strategy, device);
  detail::reset_peak_rss();
  TrainBenchRow row{.precision = precision};
  row.seconds = detail::median_seconds(device, config.repeats, [&] { trainer.step(); });
  const train::Workload workload = task->workload();
  const auto samples = static_cast<double>(config.batch);
  row.tokens_per_second = samples * static_cast<double>(workload.tokens_per_sample) / row.seconds;
  row.gflops = samples * workload.flops_per_sample / row.seconds / 1e9;
  row.mfu = row.gflops * 1e9 / peak_flops;
  row.peak_rss_mb = detail::peak_rss_mb();
  if (device.is_cuda()) row.device_mb = peak_memory_mb(device);
  return row;
}

TrainBenchReport bench(const TrainBenchConfig& config, const MakeTask& make_task) {
  require(config.batch >= 1 && config.repeats >= 1, ErrorCode::kInvalidArgument, "bench: batch ",
          config.batch, " and repeats ", config.repeats, ", expected both at least 1");
  TrainBenchReport report{.device = parse_device(config.device).str(),
                          .threads = set_num_threads(config.threads),
                          .rows = {}};
  for (const std::string& precision : config.precisions) {
    report.rows.push_back(run_case(config, precision, make_task));
  }
  return report;
}

}  // namespace

TrainBenchReport bench_gpt_train(const TrainBenchConfig& config) {
  return bench(config, [&](train::RunConfig run, const Context& context) {
    return make_gpt(config, std::move(run), context);
  });
}

TrainBenchReport bench_var_train(const TrainBenchConfig& config) {
  return bench(config, [&](train::RunConfig run, const Context& context) {
    return make_var(config, std::move(run), context);
  });
}

std::string format_report(const TrainBenchReport& report) {
  std::string out =
      str_cat(report.device, ", ", report.threads, " threads; medians\n",
              "precision  seconds  tokens/s  GFLOP/s  of a matrix product  peak MB\n");
  for (const TrainBenchRow& row : report.rows) {
    char line[160];
    std::snprintf(line, sizeof(line), "%-9s  %7.3f  %8.1f  %7.0f  %18.0f%%  %7.0f\n",
                  row.precision.c_str(), row.seconds, row.tokens_per_second, row.gflops,
                  row.mfu * 100, row.peak_rss_mb);
    out += line;
    if (row.device_mb > 0) {
      std::snprintf(line, sizeof(line), "           tensors on the device: %.0f MB\n",
                    row.device_mb);
      out += line;
    }
  }
  return out;
}

std::string report_json(const TrainBenchReport& report) {
  io::Json json = io::Json::object();
  json.set("device", io::Json::string(report.device));
  json.set("threads", io::Json::number(static_cast<int64_t>(report.threads)));
  io::Json rows = io::Json::array();
  for (const TrainBenchRow& row : report.rows) {
    io::Json item = io::Json::object();
    item.set("precision", io::Json::string(row.precision));
    item.set("seconds", io::Json::number(row.seconds));
    item.set("tokens_per_second", io::Json::number(row.tokens_per_second));
    item.set("gflops", io::Json::number(row.gflops));
    item.set("mfu", io::Json::number(row.mfu));
    item.set("peak_rss_mb", io::Json::number(row.peak_rss_mb));
    if (row.device_mb > 0) item.set("device_mb", io::Json::number(row.device_mb));
    rows.add(std::move(item));
  }
  json.set("rows", std::move(rows));
  return io::dump_json(json, 1) + "\n";
}

}  // namespace vgen::bench
