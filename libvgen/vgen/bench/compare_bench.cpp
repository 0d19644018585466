#include "vgen/bench/compare_bench.h"

#include <cstdio>

#include "vgen/bench/gpt_bench.h"
#include "vgen/bench/tokenizer_bench.h"
#include "vgen/bench/var_bench.h"
#include "vgen/core/strings.h"
#include "vgen/io/json.h"
#include "vgen/var/config.h"

namespace vgen::bench {

namespace {

constexpr int64_t kCellPixels = 16;  // of both tokenizers

GptBenchReport run_gpt(const CompareBenchConfig& config, int64_t grid) {
  return bench_gpt({.size = config.gpt_size,
                    .checkpoint = {},
                    .precisions = config.precisions,
                    .batches = config.batches,
                    .num_tokens = grid * grid,
                    .device = config.device,
                    .threads = config.threads,
                    .repeats = config.repeats});
}

TokenizerBenchReport run_decoder(const CompareBenchConfig& config, int64_t image_size) {
  std::vector<std::string> computed_in;
  for (const std::string& precision : config.precisions) {
    computed_in.push_back(precision == "fp32" ? "fp32" : "bf16");  // as VAR's bench does
  }
  return bench_tokenizer({.modes = {"decode"},
                          .batches = config.batches,
                          .image_size = image_size,
                          .precisions = computed_in,
                          .device = config.device,
                          .threads = config.threads,
                          .repeats = config.repeats});
}

VarBenchReport run_var(const CompareBenchConfig& config) {
  return bench_var({.size = config.var_size,
                    .checkpoint = {},
                    .tokenizer = {},
                    .patch_nums = config.patch_nums,
                    .precisions = config.precisions,
                    .batches = config.batches,
                    .device = config.device,
                    .threads = config.threads,
                    .repeats = config.repeats});
}

std::string millions(int64_t count) {
  return format_fixed(static_cast<double>(count) / 1e6, 0) + " million parameters";
}

}  // namespace

CompareBenchReport bench_compare(const CompareBenchConfig& config) {
  var::VarConfig model = var::var_size(config.var_size);
  if (!config.patch_nums.empty()) model.patch_nums = config.patch_nums;
  model.validate();
  const int64_t grid = model.patch_nums.back();
  CompareBenchReport report;
  report.image_size = grid * kCellPixels;

  const GptBenchReport gpt = run_gpt(config, grid);
  const TokenizerBenchReport decoder = run_decoder(config, report.image_size);
  const VarBenchReport var = run_var(config);
  report.gpt = str_cat("GPT-", config.gpt_size, ", ", millions(gpt.num_parameters), ", ",
                       grid * grid, " codes, VQ-16");
  report.var = str_cat("VAR-", config.var_size, ", ", millions(var.num_parameters), ", ",
                       model.num_tokens(), " codes in ", model.num_scales(), " steps");
  report.engine = var.engine;
  report.threads = var.threads;
  for (size_t i = 0; i < var.rows.size(); ++i) {
    const auto images = static_cast<double>(var.rows[i].batch);
    CompareBenchRow row;
    row.precision = var.rows[i].precision;
    row.batch = var.rows[i].batch;
    row.gpt = {.seconds = (gpt.rows[i].seconds + decoder.rows[i].seconds) / images,
               .decode_seconds = decoder.rows[i].seconds / images};
    row.var = {.seconds = var.rows[i].seconds / images,
               .decode_seconds = var.rows[i].decode_seconds / images};
    row.ratio = row.gpt.seconds / row.var.seconds;
    report.rows.push_back(row);
  }
  return report;
}

std::string format_report(const CompareBenchReport& report) {
  std::string out = str_cat("GPT  ", report.gpt, "\nVAR  ", report.var, "\n", report.image_size,
                            " x ", report.image_size, " pixels, guided; ", report.engine, ", ",
                            report.threads, " threads; medians, seconds an image\n",
                            "precision  batch      GPT  decoding      VAR  decoding   GPT / VAR\n");
  for (const CompareBenchRow& row : report.rows) {
    char line[160];
    std::snprintf(line, sizeof(line), "%-9s  %5lld  %7.3f  %8.3f  %7.3f  %8.3f  %10.2f\n",
                  row.precision.c_str(), static_cast<long long>(row.batch), row.gpt.seconds,
                  row.gpt.decode_seconds, row.var.seconds, row.var.decode_seconds, row.ratio);
    out += line;
  }
  return out;
}

std::string report_json(const CompareBenchReport& report) {
  io::Json json = io::Json::object();
  json.set("gpt", io::Json::string(report.gpt));
  json.set("var", io::Json::string(report.var));
  json.set("engine", io::Json::string(report.engine));
  json.set("image_size", io::Json::number(report.image_size));
  json.set("threads", io::Json::number(static_cast<int64_t>(report.threads)));
  io::Json rows = io::Json::array();
  for (const CompareBenchRow& row : report.rows) {
    io::Json item = io::Json::object();
    item.set("precision", io::Json::string(row.precision));
    item.set("batch", io::Json::number(row.batch));
    item.set("gpt_seconds", io::Json::number(row.gpt.seconds));
    item.set("gpt_decode_seconds", io::Json::number(row.gpt.decode_seconds));
    item.set("var_seconds", io::Json::number(row.var.seconds));
    item.set("var_decode_seconds", io::Json::number(row.var.decode_seconds));
    item.set("ratio", io::Json::number(row.ratio));
    rows.add(std::move(item));
  }
  json.set("rows", std::move(rows));
  return io::dump_json(json, 1) + "\n";
}

}  // namespace vgen::bench
