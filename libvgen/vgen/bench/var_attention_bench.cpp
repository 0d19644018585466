#include "vgen/bench/var_attention_bench.h"

#include <torch/torch.h>

#include <cstdio>

#include "vgen/bench/detail/measure.h"
#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/io/json.h"
#include "vgen/tensor/autocast.h"
#include "vgen/tensor/device.h"
#include "vgen/var/attention.h"

namespace vgen::bench {

namespace {

VarAttentionBenchRow run_case(const VarAttentionBenchConfig& config, const std::string& precision,
                              int64_t max_masked_tokens) {
  const var::VarConfig model = var::var_size(config.size);
  const c10::Device device = parse_device(config.device);
  const c10::ScalarType dtype = parse_precision(precision);
  torch::manual_seed(0);
  var::Attention attention(model, device);
  for (torch::Tensor& weight : attention->parameters()) weight.detach().normal_(0, 0.02);
  const int64_t tokens = model.num_tokens();
  const auto options = torch::TensorOptions(device).dtype(dtype);
  const auto x_BLC = torch::randn({config.batch, tokens, model.width()}, options).requires_grad_();
  const auto grad_BLC = torch::randn({config.batch, tokens, model.width()}, options);
  const auto groups = var::query_groups(model, model.num_scales() - 1, options,
                                        max_masked_tokens == 0 ? tokens : max_masked_tokens);

  VarAttentionBenchRow row{.precision = precision,
                           .max_masked_tokens = max_masked_tokens,
                           .calls = static_cast<int64_t>(groups.size())};
  for (const var::QueryGroup& group : groups) {
    row.product_share += static_cast<double>((group.end - group.begin) * group.end);
  }
  row.product_share /= static_cast<double>(tokens * tokens);
  const auto forward = [&] {
    const Autocast autocast(device, dtype);
    return attention(x_BLC, groups);
  };
  {
    const torch::NoGradGuard no_grad;
    row.forward_seconds = detail::median_seconds(device, config.repeats, [&] { forward(); });
  }
  row.step_seconds =
      detail::median_seconds(device, config.repeats, [&] { forward().backward(grad_BLC); });
  return row;
}

}  // namespace

VarAttentionBenchReport bench_var_attention(const VarAttentionBenchConfig& config) {
  require(config.batch >= 1 && config.repeats >= 1, ErrorCode::kInvalidArgument, "bench: batch ",
          config.batch, " and repeats ", config.repeats, ", expected both at least 1");
  VarAttentionBenchReport report{.device = parse_device(config.device).str(),
                                 .threads = set_num_threads(config.threads),
                                 .rows = {}};
  for (const std::string& precision : config.precisions) {
    for (const int64_t max_masked_tokens : config.max_masked_tokens) {
      report.rows.push_back(run_case(config, precision, max_masked_tokens));
    }
  }
  return report;
}

std::string format_report(const VarAttentionBenchReport& report) {
  std::string out =
      str_cat(report.device, ", ", report.threads, " threads; medians of one layer\n",
              "precision  masked together  calls  of L x L  forward ms  and backward ms\n");
  for (const VarAttentionBenchRow& row : report.rows) {
    const std::string masked =
        row.max_masked_tokens == 0 ? "all" : std::to_string(row.max_masked_tokens);
    char line[160];
    std::snprintf(line, sizeof(line), "%-9s  %15s  %5lld  %7.0f%%  %10.2f  %15.2f\n",
                  row.precision.c_str(), masked.c_str(), static_cast<long long>(row.calls),
                  row.product_share * 100, row.forward_seconds * 1e3, row.step_seconds * 1e3);
    out += line;
  }
  return out;
}

std::string report_json(const VarAttentionBenchReport& report) {
  io::Json json = io::Json::object();
  json.set("device", io::Json::string(report.device));
  json.set("threads", io::Json::number(static_cast<int64_t>(report.threads)));
  io::Json rows = io::Json::array();
  for (const VarAttentionBenchRow& row : report.rows) {
    io::Json item = io::Json::object();
    item.set("precision", io::Json::string(row.precision));
    item.set("max_masked_tokens", io::Json::number(row.max_masked_tokens));
    item.set("calls", io::Json::number(row.calls));
    item.set("product_share", io::Json::number(row.product_share));
    item.set("forward_seconds", io::Json::number(row.forward_seconds));
    item.set("step_seconds", io::Json::number(row.step_seconds));
    rows.add(std::move(item));
  }
  json.set("rows", std::move(rows));
  return io::dump_json(json, 1) + "\n";
}

}  // namespace vgen::bench
