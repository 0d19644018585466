// VAR and its tokenizer on a CUDA device.

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/golden.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/infer/var_engine.h"
#include "vgen/infer/var_generate.h"
#include "vgen/tensor/tf32.h"

namespace vgen {

using test::AllClose;
using test::golden;
using test::golden_tensor;

namespace {

infer::LoadedTokenizer load_golden_tokenizer(const std::string& precision = "fp32",
                                             std::vector<int64_t> patch_nums = {1, 2, 3, 4}) {
  return infer::load_tokenizer(
      golden("var_vae/vae.pth"),
      {.patch_nums = std::move(patch_nums), .device = "cuda", .precision = precision});
}

const infer::MultiScaleTokenizer& as_scales(const infer::LoadedTokenizer& loaded) {
  return dynamic_cast<const infer::MultiScaleTokenizer&>(*loaded.model);
}

infer::VarImages draw(const infer::VarEngineOptions& options,
                      const infer::MultiScaleTokenizer& tokenizer,
                      const infer::VarSettings& settings, const std::string& name = "var") {
  const auto engine = make_var_engine(infer::load_var(golden(name + "/var.pth")).weights, options);
  const auto label_B = golden_tensor(name + "/gen_labels.npy");
  std::vector<infer::VarRequest> requests;
  for (int64_t b = 0; b < label_B.size(0); ++b) {
    requests.push_back({.image = static_cast<uint64_t>(b), .label = label_B[b].item<int64_t>()});
  }
  return generate_var(*engine, tokenizer, requests, settings);
}

}  // namespace

TEST_CASE("var on CUDA: codes and images of the official code", "[infer][cuda]") {
  if (test::lacks_cuda()) return;
  allow_tf32(false);
  const auto [name, patch_nums] = GENERATE(
      table<std::string, std::vector<int64_t>>({{"var", {1, 2, 3, 4}}, {"var_from_2", {2, 3, 4}}}));
  const auto loaded = load_golden_tokenizer("fp32", patch_nums);
  for (const std::string cfg : {"1.5", "4"}) {
    CAPTURE(name, cfg);
    const std::string prefix = name + "/infer_cfg" + cfg;
    const auto images = draw({.device = "cuda"}, as_scales(loaded),
                             {.cfg_scale = std::stod(cfg), .filter = {.top_k = 1}}, name);
    CHECK(images.code_BL.cpu().equal(golden_tensor(prefix + "_idx.npy")));
    CHECK_THAT((as_scales(loaded).decode_latent(images.latent_BZhh).cpu() + 1) / 2,
               AllClose(golden_tensor(prefix + "_image.npy"), {1e-3, 0}));
  }
}

TEST_CASE("var on CUDA: draws the codes that the CPU draws", "[infer][cuda]") {
  if (test::lacks_cuda()) return;
  allow_tf32(false);
  const auto loaded = load_golden_tokenizer();
  const auto on_cpu = infer::load_tokenizer(golden("var_vae/vae.pth"),
                                            {.patch_nums = {1, 2, 3, 4}, .device = "cpu"});
  for (const bool more_smooth : {false, true}) {
    CAPTURE(more_smooth);
    const infer::VarSettings settings{.cfg_scale = 2,
                                      .filter = {.top_k = 20, .top_p = 0.9},
                                      .more_smooth = more_smooth,
                                      .seed = 5};
    const auto found = draw({.device = "cuda"}, as_scales(loaded), settings);
    const auto expected = draw({.device = "cpu"}, as_scales(on_cpu), settings);
    CHECK(found.code_BL.cpu().equal(expected.code_BL));
    CHECK_THAT(found.latent_BZhh.cpu(), AllClose(expected.latent_BZhh, {1e-3, 1e-3}));
  }
}

TEST_CASE("var on CUDA: its tokenizer finds the official codes, bf16 stays near", "[infer][cuda]") {
  if (test::lacks_cuda()) return;
  allow_tf32(false);
  const auto image_B3HW = golden_tensor("var_vae/images.npy").cuda();
  const auto loaded = load_golden_tokenizer(), narrow = load_golden_tokenizer("bf16");
  const auto code_BL = as_scales(loaded).encode(image_B3HW);
  const auto on_cpu = infer::load_tokenizer(golden("var_vae/vae.pth"),
                                            {.patch_nums = {1, 2, 3, 4}, .device = "cpu"});
  CHECK(code_BL.cpu().equal(as_scales(on_cpu).encode(image_B3HW.cpu())));
  const auto latent_BZhh = as_scales(loaded).quantizer().latent(code_BL);
  const auto exact = as_scales(loaded).decode_latent(latent_BZhh);
  const auto near = as_scales(narrow).decode_latent(latent_BZhh);
  const double error = ((near - exact).norm() / exact.norm()).item<double>();
  CAPTURE(error);
  CHECK(error < 0.06);
  CHECK(error > 0);
}

TEST_CASE("var on CUDA: bf16 stays near", "[infer][cuda]") {
  if (test::lacks_cuda()) return;
  const auto label_B = golden_tensor("var/labels.npy"),
             input_BMZ = golden_tensor("var/var_input.npy");
  const auto logits = [&](const infer::VarEngineOptions& options) {
    const auto engine = make_var_engine(infer::load_var(golden("var/var.pth")).weights, options);
    engine->start(label_B);
    std::vector<torch::Tensor> parts{engine->run_scale({})};
    const auto& config = engine->config();
    for (int64_t k = 1; k < config.num_scales(); ++k) {
      parts.push_back(
          engine->run_scale(input_BMZ.slice(1, config.scale_begin(k) - 1, config.scale_end(k) - 1)
                                .to(options.device)));
    }
    return torch::cat(parts, 1).cpu();
  };
  const auto exact = golden_tensor("var/logits.npy");
  const auto near = logits({.precision = "bf16", .device = "cuda"});
  const double error = ((near - exact).norm() / exact.norm()).item<double>();
  CAPTURE(error);
  CHECK(error < 0.1);
  CHECK(error > 0);
}

TEST_CASE("var: int8 is there on the CPU alone", "[infer]") {
  CHECK(test::error_of([] {
          make_var_engine(infer::load_var(golden("var/var.pth")).weights,
                          {.precision = "int8", .use_own_kernels = false});
        }) == "precision int8 is there on the CPU alone; on cpu use bf16");
}

}  // namespace vgen
