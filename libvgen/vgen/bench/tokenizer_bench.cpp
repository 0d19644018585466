#include "vgen/bench/tokenizer_bench.h"

#include <torch/torch.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>

#include "vgen/bench/detail/measure.h"
#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/core/strings.h"
#include "vgen/dist/strategy.h"
#include "vgen/infer/load_tokenizer.h"
#include "vgen/kernels/cpu_isa.h"
#include "vgen/kernels/nearest_code.h"
#include "vgen/tensor/device.h"
#include "vgen/tokenizer/vq_loss.h"
#include "vgen/tokenizer/vqgan.h"
#include "vgen/train/matmul_peak.h"
#include "vgen/train/optimizer.h"
#include "vgen/train/tokenizer_cost.h"

namespace vgen::bench {
namespace {

using tokenizer::Vqgan;
using tokenizer::VqganConfig;

/// Of one image.
train::TokenizerFlops flops_of(const VqganConfig& config, int64_t side) {
  return train::tokenizer_flops(train::shape_of(config), tokenizer::VqLossConfig(), side);
}

constexpr int64_t kVggWidths[] = {64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512};
constexpr int kVggIndices[] = {0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28};
constexpr bool kVggHalves[] = {false, false, true,  false, true,  false, false,
                               true,  false, false, true,  false, false};

tokenizer::Lpips random_lpips() {
  tokenizer::NamedWeights vgg, lin;
  int64_t channels = 3, taps = 0;
  for (size_t i = 0; i < std::size(kVggWidths); ++i) {
    const std::string name = str_cat("features.", kVggIndices[i]);
    const double scale = std::sqrt(2.0 / static_cast<double>(channels * 9));
    vgg[name + ".weight"] = torch::randn({kVggWidths[i], channels, 3, 3}) * scale;
    vgg[name + ".bias"] = torch::zeros({kVggWidths[i]});
    channels = kVggWidths[i];
    if (i + 1 == std::size(kVggWidths) || kVggHalves[i + 1]) {
      lin[str_cat("lin", taps++, ".model.1.weight")] = torch::rand({1, channels, 1, 1}) / 100;
    }
  }
  return tokenizer::Lpips(vgg, lin);
}

struct Case {
  std::string mode, precision;
  int64_t batch = 0;
};

TokenizerBenchRow row_of(const Case& what, double seconds, double flops, double gemm) {
  const double images = static_cast<double>(what.batch), gflops = images * flops / seconds / 1e9;
  return {.mode = what.mode,
          .precision = what.precision,
          .batch = what.batch,
          .seconds = seconds,
          .images_per_second = images / seconds,
          .gflops = gflops,
          .gemm_share = gflops / gemm,
          .peak_rss_mb = detail::peak_rss_mb()};
}

torch::Tensor random_images(const TokenizerBenchConfig& config, const c10::Device& device,
                            int64_t batch) {
  return torch::rand({batch, 3, config.image_size, config.image_size}, device) * 2 - 1;
}

/// Encoding or decoding with the weights of a file.
TokenizerBenchRow run_loaded(const TokenizerBenchConfig& config, const c10::Device& device,
                             const Case& what) {
  const torch::NoGradGuard no_grad;
  const auto loaded = infer::load_tokenizer(
      config.weights,
      {.config = config.model, .device = device.str(), .precision = what.precision});
  const VqganConfig model = tokenizer::vqgan_preset(config.model);
  const double gemm = train::measure_matmul_flops(device, parse_precision(what.precision)) / 1e9;
  const int64_t side = config.image_size, code_side = side / model.downsample();
  const torch::Tensor image_B3HW = random_images(config, device, what.batch);
  const torch::Tensor index_Bhw =
      torch::randint(model.codebook_size, {what.batch, code_side, code_side}, device);
  const bool is_encode = what.mode == "encode";
  detail::reset_peak_rss();
  const double seconds = detail::median_seconds(device, config.repeats, [&] {
    if (is_encode) {
      loaded.model->encode(image_B3HW);
    } else {
      loaded.model->decode(index_Bhw, side, side);
    }
  });
  const train::TokenizerFlops flops = flops_of(model, side);
  return row_of(what, seconds, is_encode ? flops.encode : flops.decode, gemm);
}

/// One model, and what a training step needs once it is asked for.
class Subject {
 public:
  Subject(const TokenizerBenchConfig& config, const c10::Device& device)
      : config_(config), device_(device), vqgan_(tokenizer::vqgan_preset(config.model)) {
    vqgan_->to(device);
  }

  TokenizerBenchRow run(const Case& what) {
    const std::string &mode = what.mode, &precision = what.precision;
    const int64_t batch = what.batch;
    const auto dtype = parse_precision(precision);
    vqgan_->set_compute_dtype(dtype);
    const double gemm = train::measure_matmul_flops(device_, dtype) / 1e9;
    const int64_t side = config_.image_size;
    const torch::Tensor image_B3HW = random_images(config_, device_, batch);
    detail::reset_peak_rss();
    const train::TokenizerFlops parts = flops_of(vqgan_->config(), side);
    double flops = 0, seconds = 0;
    if (mode == "train") {
      flops = parts.train();
      seconds = time_training(dtype, image_B3HW);
    } else {
      const torch::NoGradGuard no_grad;
      vqgan_->eval();
      const int64_t code_side = side / vqgan_->config().downsample();
      const torch::Tensor index_N =
          torch::randint(vqgan_->config().codebook_size, {batch * code_side * code_side}, device_);
      const bool is_encode = mode == "encode";
      flops = is_encode ? parts.encode : parts.decode;
      seconds = detail::median_seconds(device_, config_.repeats, [&] {
        if (is_encode) {
          vqgan_->encode(image_B3HW);
        } else {
          vqgan_->decode_code(index_N, batch, code_side, code_side);
        }
      });
    }
    return row_of(what, seconds, flops, gemm);
  }

 private:
  double time_training(c10::ScalarType dtype, const torch::Tensor& image_B3HW) {
    vqgan_->train();
    tokenizer::VqLossConfig loss_config;
    loss_config.disc_start = 0;
    tokenizer::VqLoss loss(loss_config, config_.image_size, random_lpips());
    loss->to(device_);
    loss->set_compute_dtype(dtype);
    loss->train();
    const train::OptimizerConfig adam;
    train::Optimizer generator(adam, checkpoint::named_parameters(*vqgan_));
    train::Optimizer discriminator(adam, checkpoint::named_parameters(*loss->discriminator));
    const auto strategy = dist::single_process();
    strategy->attach({{{}, generator.parameters(), {}}, {{}, discriminator.parameters(), {}}}, {});
    const auto update = [&](size_t phase, train::Optimizer& optimizer, const torch::Tensor& total) {
      optimizer.zero_grad();
      total.backward();
      strategy->clip_grad_norm(phase, 1.0);
      optimizer.step({});
    };
    return detail::median_seconds(device_, config_.repeats, [&] {
      torch::Tensor recon_B3HW;
      {
        const auto output = vqgan_->forward(image_B3HW);
        const auto terms = loss->generator_loss({.image_B3HW = image_B3HW,
                                                 .recon_B3HW = output.image_B3HW,
                                                 .quantizer = output.quantized.losses,
                                                 .step = 1,
                                                 .last_weight = {}});
        recon_B3HW = output.image_B3HW.detach();
        update(0, generator, terms.loss);
      }
      update(1, discriminator, loss->discriminator_loss(image_B3HW, recon_B3HW, 1).loss);
    });
  }

  TokenizerBenchConfig config_;
  c10::Device device_;
  Vqgan vqgan_;
};

torch::Tensor unit_rows(int64_t rows, int64_t dim, const c10::Device& device) {
  const torch::Tensor values = torch::randn({rows, dim}, device);
  return values / values.norm(2, 1, /*keepdim=*/true);
}

torch::Tensor plain_search(const torch::Tensor& z_ND, const torch::Tensor& codes_VD) {
  const torch::Tensor distance_NV = z_ND.square().sum(1, /*keepdim=*/true) +
                                    codes_VD.square().sum(1) - 2 * z_ND.matmul(codes_VD.t());
  return distance_NV.argmin(1);
}

/// All cases of ours before those of the plain formula, whose memory would be kept.
std::vector<SearchBenchRow> time_searches(const TokenizerBenchConfig& config,
                                          const c10::Device& device) {
  const torch::NoGradGuard no_grad;
  const VqganConfig model = tokenizer::vqgan_preset(config.model);
  const int64_t side = config.image_size / model.downsample(), dim = model.codebook_embed_dim;
  const torch::Tensor codes_VD = unit_rows(model.codebook_size, dim, device);
  std::vector<SearchBenchRow> rows;
  std::vector<torch::Tensor> latents, found;
  for (const int64_t batch : config.batches) {
    SearchBenchRow& row = rows.emplace_back();
    row.rows = batch * side * side;
    row.codes = model.codebook_size;
    row.dim = dim;
    const torch::Tensor& z_ND = latents.emplace_back(unit_rows(row.rows, dim, device));
    torch::Tensor& index_N = found.emplace_back();
    detail::reset_peak_rss();
    row.seconds = detail::median_seconds(device, config.repeats,
                                         [&] { index_N = kernels::nearest_code(z_ND, codes_VD); });
    row.peak_rss_mb = detail::peak_rss_mb();
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    SearchBenchRow& row = rows[i];
    torch::Tensor index_N;
    detail::reset_peak_rss();
    row.plain_seconds = detail::median_seconds(
        device, config.repeats, [&] { index_N = plain_search(latents[i], codes_VD); });
    row.plain_peak_rss_mb = detail::peak_rss_mb();
    row.speedup = row.plain_seconds / row.seconds;
    row.same_codes = index_N.eq(found[i]).to(torch::kFloat64).mean().item<double>();
  }
  return rows;
}

bool is_known(const std::string& mode) {
  return mode == "encode" || mode == "decode" || mode == "train" || mode == "search";
}

void check(const TokenizerBenchConfig& config) {
  for (const std::string& mode : config.modes) {
    require(is_known(mode), ErrorCode::kInvalidArgument, "bench: mode '", printable(mode),
            "' is unknown, expected encode, decode, train or search");
  }
  for (const int64_t batch : config.batches) {
    require(batch >= 1, ErrorCode::kInvalidArgument, "bench: batch ", batch,
            ", expected at least 1");
  }
  require(config.repeats >= 1 && config.train_batch >= 1, ErrorCode::kInvalidArgument,
          "bench: repeats ", config.repeats, " and train batch ", config.train_batch,
          ", expected both at least 1");
  const int64_t factor = tokenizer::vqgan_preset(config.model).downsample();
  require(config.image_size >= 32 && config.image_size % factor == 0, ErrorCode::kInvalidArgument,
          "bench: image size ", config.image_size, ", expected a multiple of ", factor,
          ", at least 32");
}

}  // namespace

TokenizerBenchReport bench_tokenizer(const TokenizerBenchConfig& config) {
  check(config);
  const c10::Device device = parse_device(config.device);
  TokenizerBenchReport report{.device = device.str(),
                              .cpu_isa = kernels::cpu_isa_name(kernels::best_cpu_isa()),
                              .threads = set_num_threads(config.threads),
                              .rows = {},
                              .search = {}};
  torch::manual_seed(0);
  std::optional<Subject> subject;
  for (const std::string& mode : config.modes) {
    if (mode == "search") {
      report.search = time_searches(config, device);
      continue;
    }
    const bool is_loaded = !config.weights.empty() && mode != "train";
    if (!is_loaded && !subject) subject.emplace(config, device);
    for (const std::string& precision : config.precisions) {
      const auto batches =
          mode == "train" ? std::vector<int64_t>{config.train_batch} : config.batches;
      for (const int64_t batch : batches) {
        const Case what{mode, precision, batch};
        report.rows.push_back(is_loaded ? run_loaded(config, device, what) : subject->run(what));
      }
    }
  }
  return report;
}

namespace {

std::string format_search(const std::vector<SearchBenchRow>& rows) {
  if (rows.empty()) return "";
  std::string text =
      str_cat("nearest of ", rows[0].codes, " codes of ", rows[0].dim,
              " channels, fp32; plain: the matrix of all distances, then argmin\n"
              "  rows    seconds      plain   speed-up   peak RSS MB      plain   same codes\n");
  for (const SearchBenchRow& row : rows) {
    char line[160];
    std::snprintf(line, sizeof(line), "%6lld %10.5f %10.5f %9.2fx %13.0f %10.0f %11.2f%%\n",
                  static_cast<long long>(row.rows), row.seconds, row.plain_seconds, row.speedup,
                  row.peak_rss_mb, row.plain_peak_rss_mb, 100 * row.same_codes);
    text += line;
  }
  return text;
}

}  // namespace

std::string format_report(const TokenizerBenchReport& report) {
  std::string text = str_cat(report.device, ", ", report.threads, " threads, kernels for ",
                             report.cpu_isa, "; medians\n");
  if (!report.rows.empty()) {
    text +=
        "FLOPs as of direct convolutions\n"
        "mode    precision  batch    seconds   images/s    GFLOP/s   of GEMM   peak RSS MB\n";
  }
  for (const TokenizerBenchRow& row : report.rows) {
    char line[160];
    std::snprintf(line, sizeof(line), "%-7s %-9s %6lld %10.4f %10.2f %10.1f %8.0f%% %13.0f\n",
                  row.mode.c_str(), row.precision.c_str(), static_cast<long long>(row.batch),
                  row.seconds, row.images_per_second, row.gflops, 100 * row.gemm_share,
                  row.peak_rss_mb);
    text += line;
  }
  return text + format_search(report.search);
}

std::string report_json(const TokenizerBenchReport& report) {
  nlohmann::ordered_json json;
  json["device"] = report.device;
  json["cpu_isa"] = report.cpu_isa;
  json["threads"] = report.threads;
  json["rows"] = nlohmann::ordered_json::array();
  for (const TokenizerBenchRow& row : report.rows) {
    json["rows"].push_back({{"mode", row.mode},
                            {"precision", row.precision},
                            {"batch", row.batch},
                            {"seconds", row.seconds},
                            {"images_per_second", row.images_per_second},
                            {"gflops", row.gflops},
                            {"gemm_share", row.gemm_share},
                            {"peak_rss_mb", row.peak_rss_mb}});
  }
  json["search"] = nlohmann::ordered_json::array();
  for (const SearchBenchRow& row : report.search) {
    json["search"].push_back({{"rows", row.rows},
                              {"codes", row.codes},
                              {"dim", row.dim},
                              {"seconds", row.seconds},
                              {"plain_seconds", row.plain_seconds},
                              {"speedup", row.speedup},
                              {"peak_rss_mb", row.peak_rss_mb},
                              {"plain_peak_rss_mb", row.plain_peak_rss_mb},
                              {"same_codes", row.same_codes}});
  }
  return json.dump(2) + "\n";
}

}  // namespace vgen::bench
