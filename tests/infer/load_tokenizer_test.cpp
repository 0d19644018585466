// Tokenizers from official files, from runs, and from what is neither.

#include "vgen/infer/load_tokenizer.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <type_traits>

#include "support/count_memory.h"
#include "support/golden.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/checkpoint/store.h"
#include "vgen/core/log.h"
#include "vgen/infer/vqgan_config.h"
#include "vgen/io/convert.h"
#include "vgen/io/safetensors.h"
#include "vgen/tokenizer/multi_scale_vqvae.h"
#include "vgen/tokenizer/vqgan.h"

using namespace vgen;
using Catch::Matchers::Contains;
using infer::load_tokenizer;
using test::AllClose;
using test::golden;
using test::golden_tensor;
using tokenizer::VqganConfig;
namespace fs = std::filesystem;

namespace {

/// The fields of a golden's meta.json.
VqganConfig golden_config(const std::string& name) {
  const std::string path = golden(name + "/meta.json");
  const io::Json meta = io::parse_json(test::read_file(path));
  const io::Json& fields = meta.get_object("config");
  VqganConfig config;
  config.ch = meta.get_int("ch");
  config.num_res_blocks = meta.get_int("num_res_blocks");
  config.z_channels = fields.get_int("z_channels");
  config.codebook_size = fields.get_int("codebook_size");
  config.codebook_embed_dim = fields.get_int("codebook_embed_dim");
  config.codebook_show_usage = fields.get_bool("codebook_show_usage");
  const auto multiples = [&](const char* key) {
    std::vector<int64_t> values;
    for (const io::Json& item : fields.get_array(key).items) values.push_back(item.integer);
    return values;
  };
  config.encoder_ch_mult = multiples("encoder_ch_mult");
  config.decoder_ch_mult = multiples("decoder_ch_mult");
  return config;
}

/// Codes and pictures of the official code. `prefix`: "vq16/", "vq_ema/ema_".
void check_golden(const infer::LoadedTokenizer& loaded, const std::string& images,
                  const std::string& prefix) {
  const torch::Tensor image_B3HW = golden_tensor(images);
  const torch::Tensor expected = golden_tensor(prefix + "indices.npy");
  const int64_t height = image_B3HW.size(2), width = image_B3HW.size(3);
  const torch::Tensor code = loaded.model->encode(image_B3HW);
  CHECK(code.scalar_type() == torch::kInt64);
  CHECK(code.equal(expected));
  CHECK(loaded.model->code_shape(height, width) ==
        std::vector<int64_t>{expected.size(1), expected.size(2)});
  CHECK_THAT(loaded.model->decode(code, height, width),
             AllClose(golden_tensor(prefix + "recon.npy"), test::kParity));
  const torch::Tensor flat = golden_tensor(prefix + "codes.npy").to(torch::kInt32);
  CHECK_THAT(loaded.model->decode(flat, height, width),
             AllClose(golden_tensor(prefix + "decoded.npy"), test::kParity));
  CHECK_FALSE(loaded.model->decode(flat, height, width).requires_grad());
}

VqganConfig tiny_config() {
  VqganConfig config = golden_config("vq_ema");
  config.codebook_size = 16;
  config.z_channels = 8;
  config.codebook_show_usage = true;
  config.dropout_p = 0.5;  // must be off
  return config;
}

tokenizer::MultiScaleVqvaeConfig tiny_scales() {
  tokenizer::MultiScaleVqvaeConfig config;
  config.ch = 32;
  config.ch_mult = {1, 1};
  config.num_res_blocks = 1;
  config.z_channels = 4;
  config.codebook_size = 16;
  config.patch_nums = {1, 2, 4};
  return config;
}

/// <run>/config.yaml and a checkpoint of `model` (and `ema`) at step 30.
template <class Config, class Model>
void write_run(const std::string& run, const Config& config, Model model, Model ema,
               const io::Metadata& metadata = {}) {
  fs::create_directories(run);
  const std::string task = std::is_same_v<Config, VqganConfig> ? "tokenizer" : "var_tokenizer";
  std::string yaml = "task: " + task + "\nsteps: 100\ndata:\n  image_size: 24\nmodel:\n";
  for (const std::string& line : split(dump_config(config), '\n')) yaml += "  " + line + "\n";
  test::write_file(run + "/config.yaml", yaml);
  checkpoint::Snapshot snapshot;
  snapshot.step = 30;
  snapshot.state = io::Json::object();
  snapshot.files.push_back({"model.safetensors", checkpoint::named_state(*model), metadata});
  if (ema) snapshot.files.push_back({"ema.safetensors", checkpoint::named_state(*ema), metadata});
  checkpoint::CheckpointStore(run + "/checkpoints", {}).save(snapshot);
}

torch::Tensor test_image() { return torch::linspace(-1, 1, 3 * 8 * 8).view({1, 3, 8, 8}).sin(); }

torch::Tensor codes_of(tokenizer::Vqgan model) {
  const torch::NoGradGuard no_grad;
  model->eval();
  return model->encode(test_image()).index_N.view({1, 4, 4});
}

}  // namespace

TEST_CASE("load_tokenizer: official weights without a config, five levels", "[infer][golden]") {
  const std::string file = golden("vq16/ckpt.safetensors");
  const auto expected = dump_config(golden_config("vq16"));
  CHECK(dump_config(infer::infer_vqgan_config(io::load_state_dict(file))) == expected);
  const auto loaded = load_tokenizer(file, {.device = "cpu"});
  CHECK(loaded.model->config_yaml() == expected);
  CHECK(loaded.model->downsample() == 16);
  CHECK(loaded.model->codebook_size() == 128);
  CHECK(loaded.model->kind() == "vqgan");
  CHECK(loaded.weights == "model");
  CHECK(loaded.source == file);
  CHECK(loaded.step == -1);
  check_golden(loaded, "vq16/images.npy", "vq16/");

  // The layout {"model": ...} of training checkpoints, and the same as a flat dict.
  const test::TempDir temp;
  for (const std::string nest : {"model", ""}) {
    const std::string copy = temp / ("nested" + nest + ".pt");
    io::convert({.input = file, .output = copy, .nest = nest});
    const auto again = load_tokenizer(copy, {.device = "cpu"});
    CHECK(again.weights == "model");
    CHECK(again.model->fingerprint() == loaded.model->fingerprint());
    check_golden(again, "vq16/images.npy", "vq16/");
  }
}

TEST_CASE("load_tokenizer: model and averaged weights of one official file", "[infer][golden]") {
  const std::string file = golden("vq_ema/ckpt.pt");
  const auto expected = dump_config(golden_config("vq_ema"));
  for (const std::string weights : {"auto", "ema", "model"}) {
    INFO(weights);
    const auto loaded = load_tokenizer(file, {.weights = weights, .device = "cpu"});
    const std::string name = weights == "model" ? "model" : "ema";
    CHECK(loaded.weights == name);
    CHECK(loaded.model->config_yaml() == expected);
    check_golden(loaded, "vq_ema/images.npy", "vq_ema/" + name + "_");
  }
  CHECK(load_tokenizer(file, {.weights = "ema"}).model->fingerprint() !=
        load_tokenizer(file, {.weights = "model"}).model->fingerprint());
}

TEST_CASE("load_tokenizer: a checkpoint with more than a tokenizer in it", "[infer][golden]") {
  const auto loaded = load_tokenizer(golden("train_vq/init.pt"));
  CHECK(loaded.model->config_yaml() == dump_config(golden_config("train_vq")));
}

TEST_CASE("load_tokenizer: runs give their newest weights, averaged ones first", "[infer]") {
  const test::TempDir temp;
  const VqganConfig config = tiny_config();
  torch::manual_seed(3);
  tokenizer::Vqgan model(config), ema(config);
  const std::string run = temp / "run";
  write_run(run, config, model, ema);
  REQUIRE_FALSE(codes_of(model).equal(codes_of(ema)));

  const std::string checkpoint = run + "/checkpoints/step_0000030";
  for (const std::string& path :
       {run, run + "/", run + "/checkpoints", checkpoint, checkpoint + "/"}) {
    INFO(path);
    const auto loaded = load_tokenizer(path, {.device = "cpu"});
    CHECK(loaded.weights == "ema");
    CHECK(loaded.step == 30);
    CHECK(loaded.image_size == 24);
    CHECK(loaded.model->config_yaml() == dump_config(config));
    CHECK(loaded.model->encode(test_image()).equal(codes_of(ema)));
  }
  const auto loaded = load_tokenizer(run, {.weights = "model", .device = "cpu"});
  CHECK(loaded.weights == "model");
  CHECK(loaded.model->encode(test_image()).equal(codes_of(model)));
  // One file of a checkpoint, without its run: the same tokenizer.
  const auto file = load_tokenizer(checkpoint + "/model.safetensors");
  CHECK(file.model->fingerprint() == loaded.model->fingerprint());
  CHECK(load_tokenizer(checkpoint + "/ema.safetensors").weights == "ema");

  write_run(temp / "plain", config, model, tokenizer::Vqgan(nullptr));
  CHECK(load_tokenizer(temp / "plain").weights == "model");
  CHECK_THAT(test::error_of([&] { load_tokenizer(temp / "plain", {.weights = "ema"}); }),
             Contains("holds no averaged weights"));
}

TEST_CASE("load_tokenizer: one file of a run's checkpoint has the scales of the run", "[infer]") {
  const test::TempDir temp;
  tokenizer::MultiScaleVqvaeConfig config = tiny_scales();
  torch::manual_seed(5);
  tokenizer::MultiScaleVqvae model(config);
  const std::string run = temp / "run";
  write_run(run, config, model, model);
  const std::string folder = run + "/checkpoints/step_0000030/";
  const std::string fingerprint = load_tokenizer(run).model->fingerprint();
  const infer::TokenizerOptions of_var{.patch_nums = {1, 2, 3, 4}};  // a transformer's scales
  for (const std::string name : {"model.safetensors", "ema.safetensors"}) {
    INFO(name);
    const auto loaded = load_tokenizer(folder + name, of_var);
    CHECK(loaded.model->patch_nums() == config.patch_nums);
    CHECK(loaded.model->fingerprint() == fingerprint);
    CHECK(loaded.image_size == 8);
    CHECK(loaded.weights == name.substr(0, name.find('.')));
  }

  // Away from its run a file without metadata does not tell the scales: those that are asked for,
  // with a warning where the weights counted others.
  const std::string alone = temp / "alone.safetensors";
  fs::copy_file(folder + "model.safetensors", alone);
  const auto log_of = [&](const infer::TokenizerOptions& options) {
    init_logging({.file = temp / "log.txt"});
    CHECK(load_tokenizer(alone, options).model->patch_nums() == options.patch_nums);
    init_logging({});
    const std::string text = test::read_file(temp / "log.txt");
    fs::remove(temp / "log.txt");
    return text;
  };
  CHECK(log_of({.patch_nums = {1, 3, 4}}).empty());
  CHECK_THAT(log_of(of_var), Contains("alone.safetensors: counts the usage of 3 scales, but serves "
                                      "the 4 scales [1, 2, 3, 4] here"));

  // A run whose config is no longer its own.
  config.patch_nums = of_var.patch_nums;
  std::string yaml = "task: var_tokenizer\nmodel:\n";
  for (const std::string& line : split(dump_config(config), '\n')) yaml += "  " + line + "\n";
  test::write_file(run + "/config.yaml", yaml);
  for (const std::string& path : {run, folder + "model.safetensors"}) {
    CHECK_THAT(test::error_of([&] { load_tokenizer(path); }),
               Contains("counts the usage of 3 scales, but model.patch_nums in config.yaml of its "
                        "run is [1, 2, 3, 4]; put back"));
  }
}

TEST_CASE("load_tokenizer: one phi or one of each scale, read off bare weights", "[infer]") {
  const test::TempDir temp;
  tokenizer::MultiScaleVqvaeConfig config = tiny_scales();
  config.share_quant_resi = GENERATE(1, 0, 2);
  INFO(config.share_quant_resi);
  torch::manual_seed(6);
  tokenizer::MultiScaleVqvae model(config);
  const std::string file = temp / "bare.safetensors";
  io::write_safetensors(file, checkpoint::as_arrays(checkpoint::named_state(*model)));
  const auto loaded = load_tokenizer(file, {.patch_nums = config.patch_nums, .device = "cpu"});
  CHECK(loaded.model->config_yaml() == dump_config(config));
  const torch::NoGradGuard no_grad;
  model->eval();
  const auto code_BL = loaded.model->encode(test_image());
  CHECK(code_BL.equal(model->forward(test_image()).quantized.index_BL));
  CHECK_THAT(loaded.model->decode_scales(code_BL).back(),
             AllClose(model->decode_scales(code_BL).back(), test::kFloat32));
}

TEST_CASE("load_tokenizer: weights that tell their scales serve no others", "[infer]") {
  const test::TempDir temp;
  tokenizer::MultiScaleVqvaeConfig config = tiny_scales();
  tokenizer::MultiScaleVqvae model(config);
  const std::string run = temp / "run";
  write_run(run, config, model, model, {{"patch_nums", "[1, 2, 4]"}});
  const std::string weights = run + "/checkpoints/step_0000030/model.safetensors";
  const std::string alone = temp / "alone.safetensors";
  fs::copy_file(weights, alone);
  const auto error = [](const std::string& path, const infer::TokenizerOptions& options = {}) {
    return test::error_of([&] { load_tokenizer(path, options); });
  };
  CHECK(load_tokenizer(alone).model->patch_nums() == config.patch_nums);
  CHECK(load_tokenizer(alone, {.patch_nums = {1, 2, 4}}).model->fingerprint() ==
        load_tokenizer(run).model->fingerprint());
  CHECK_THAT(error(alone, {.patch_nums = {1, 3, 4}}),
             Contains("alone.safetensors: was trained with the scales [1, 2, 4], but the "
                      "transformer that it is to serve has [1, 3, 4]; name the tokenizer"));

  config.patch_nums = {1, 3, 4};
  test::write_file(temp / "other.yaml", dump_config(config));
  CHECK_THAT(error(alone, {.config = temp / "other.yaml"}),
             Contains("[1, 2, 4], but model.patch_nums of the given config is [1, 3, 4]; give the "
                      "scales of the weights"));
  std::string yaml = "task: var_tokenizer\nmodel:\n";
  for (const std::string& line : split(dump_config(config), '\n')) yaml += "  " + line + "\n";
  test::write_file(run + "/config.yaml", yaml);
  for (const std::string& path : {run, weights}) {
    CHECK_THAT(error(path), Contains("was trained with the scales [1, 2, 4], but model.patch_nums "
                                     "in config.yaml of its run is [1, 3, 4]; put back"));
  }

  for (const std::string text : {"1 2 4", "[]", "[1, 2.5]", "[1, 2, 1025]", "{}"}) {
    INFO(text);
    const auto arrays = checkpoint::as_arrays(checkpoint::named_state(*model));
    io::write_safetensors(alone, arrays, {{"patch_nums", text}});
    CHECK_THAT(error(alone), Contains("alone.safetensors: metadata 'patch_nums': "));
  }
}

TEST_CASE("load_tokenizer: the fingerprint is that of the weights, nothing else", "[infer]") {
  const test::TempDir temp;
  VqganConfig config = tiny_config();
  torch::manual_seed(4);
  tokenizer::Vqgan model(config);
  const std::string file = temp / "a.safetensors";
  const auto write = [&] {
    io::write_safetensors(file, checkpoint::as_arrays(checkpoint::named_state(*model)));
  };
  write();
  const std::string fingerprint = load_tokenizer(file).model->fingerprint();
  CHECK(fingerprint.size() == std::string("vqgan-").size() + 16);
  CHECK(load_tokenizer(file, {.precision = "bf16"}).model->fingerprint() == fingerprint);
  {
    const torch::NoGradGuard no_grad;
    model->quantize->named_buffers()["codebook_used"].fill_(3);
    write();
    CHECK(load_tokenizer(file).model->fingerprint() == fingerprint);
    model->parameters().back()[0].add_(1e-3);
    write();
  }
  CHECK(load_tokenizer(file).model->fingerprint() != fingerprint);
  const std::string yaml = temp / "model.yaml";
  config.codebook_l2_norm = false;
  test::write_file(yaml, dump_config(config));
  CHECK(load_tokenizer(file, {.config = yaml}).model->fingerprint() !=
        load_tokenizer(file).model->fingerprint());
}

TEST_CASE("load_tokenizer: a config can be given", "[infer]") {
  const test::TempDir temp;
  const std::string file = golden("vq_ema/ckpt.pt");
  const std::string yaml = temp / "model.yaml";
  test::write_file(yaml, dump_config(golden_config("vq_ema")));
  check_golden(load_tokenizer(file, {.config = yaml, .device = "cpu"}), "vq_ema/images.npy",
               "vq_ema/ema_");
  CHECK_THAT(test::error_of([&] { load_tokenizer(file, {.config = "VQ-16"}); }),
             Contains("vq_ema/ckpt.pt ('ema'): the tensors are not those of this model") &&
                 Contains("missing: encoder.conv_blocks.0.res.1.") &&
                 Contains("encoder.conv_in.weight is [32, 3, 3, 3], expected [128, 3, 3, 3]"));
  CHECK_THAT(test::error_of([&] { load_tokenizer(file, {.config = "VQ-32"}); }),
             Contains("expected VQ-16 or VQ-8"));
  CHECK_THAT(test::error_of([&] { load_tokenizer(file, {.config = temp / "gone.yaml"}); }),
             Contains("gone.yaml: no such file"));
}

TEST_CASE("load_tokenizer: bf16 and fp16 stay near fp32", "[infer][golden]") {
  const torch::Tensor code = golden_tensor("vq16/codes.npy");
  const torch::Tensor expected = golden_tensor("vq16/decoded.npy");
  for (const auto& [precision, bound] : {std::pair{"bf16", 0.06}, std::pair{"fp16", 0.01}}) {
    INFO(precision);
    const auto loaded =
        load_tokenizer(golden("vq16/ckpt.safetensors"), {.device = "cpu", .precision = precision});
    const torch::Tensor decoded = loaded.model->decode(code, 64, 64);
    CHECK(decoded.scalar_type() == torch::kFloat32);
    CHECK(((decoded - expected).norm() / expected.norm()).item<double>() < bound);
    CHECK_FALSE(decoded.equal(expected));
  }
}

TEST_CASE("load_tokenizer: nothing is made of weights in fp32, half of them in fp16", "[infer]") {
  const std::string file = golden("vq16/ckpt.safetensors");
  const auto size_bytes = static_cast<double>(fs::file_size(file));
  const torch::Tensor code = golden_tensor("vq16/codes.npy");
  for (const auto& [precision, bound] : {std::pair{"fp32", 0.1}, std::pair{"fp16", 0.5}}) {
    INFO(precision);
    const test::MemoryCount memory;
    const auto loaded = load_tokenizer(file, {.device = "cpu", .precision = precision});
    const auto image = loaded.model->decode(code, 64, 64);
    loaded.model->encode(image);
    const auto kept = static_cast<double>(memory.now()) - static_cast<double>(image.nbytes());
    CHECK(kept <= bound * size_bytes);
  }
}

TEST_CASE("load_tokenizer: bf16 on CUDA stays near fp32", "[infer][cuda]") {
  if (test::lacks_cuda()) return;
  const auto loaded =
      load_tokenizer(golden("vq16/ckpt.safetensors"), {.device = "cuda", .precision = "bf16"});
  const torch::Tensor expected = golden_tensor("vq16/decoded.npy");
  const torch::Tensor decoded =
      loaded.model->decode(golden_tensor("vq16/codes.npy"), 64, 64).to(torch::kCPU);
  CHECK(((decoded - expected).norm() / expected.norm()).item<double>() < 0.06);
}

TEST_CASE("load_tokenizer: what is no tokenizer is told in one line", "[infer]") {
  const test::TempDir temp;
  const auto error = [](const std::string& path, const infer::TokenizerOptions& options = {}) {
    return test::error_of([&] { load_tokenizer(path, options); });
  };
  CHECK_THAT(error(temp / "none"), Contains("none: no such file or folder; expected a run folder"));
  CHECK_THAT(error(temp.path()), Contains("a folder without weights"));
  test::write_file(temp / "text.pt", "hello");
  CHECK_THAT(error(temp / "text.pt"), Contains("text.pt"));
  const std::string good = test::read_file(golden("vq_ema/ckpt.pt"));
  test::write_file(temp / "cut.pt", good.substr(0, good.size() / 2));
  CHECK_THAT(error(temp / "cut.pt"), Contains("cut.pt"));
  CHECK_THAT(error(golden("gpt_c2i/ckpt.safetensors")),
             Contains("not the weights of a VQGAN tokenizer: no tensor 'encoder.conv_in.weight'"));
  CHECK_THAT(error(golden("vq_ema/ckpt.pt"), {.weights = "discriminator"}),
             Contains("no key 'discriminator'"));
  CHECK_THAT(error(golden("vq_ema/ckpt.pt"), {.precision = "fp8"}), Contains("expected fp32"));
  CHECK_THAT(error(golden("vq16/ckpt.safetensors"), {.weights = "ema"}), Contains("no key 'ema'"));

  const std::string run = temp / "run";
  write_run(run, tiny_config(), tokenizer::Vqgan(tiny_config()), tokenizer::Vqgan(nullptr));
  test::write_file(run + "/config.yaml", "task: gpt\nmodel: {n_layer: 3}\n");
  CHECK_THAT(error(run), Contains("a run of the task 'gpt', expected a tokenizer"));
  test::write_file(run + "/config.yaml", "model: {codebook_sise: 3}\n");
  CHECK_THAT(error(run), Contains("is it 'codebook_size'?"));
  test::write_file(run + "/config.yaml", "model: {ch: 64, z_channels: 8}\n");
  CHECK_THAT(error(run), Contains("model.safetensors: the tensors are not those of this model"));
  test::write_file(run + "/checkpoints/step_0000030/model.safetensors", "half");
  CHECK_THAT(error(run), Contains("holds no valid checkpoint"));
}

TEST_CASE("infer_vqgan_config: hostile shapes ask for no memory", "[infer]") {
  const test::TempDir temp;
  tokenizer::Vqgan model(tiny_config());
  const auto state = checkpoint::named_state(*model);
  const auto error_with = [&](const std::string& name, const torch::Tensor& tensor) {
    checkpoint::NamedTensors changed = state;
    for (auto& item : changed) {
      if (item.name == name) item.tensor = tensor;
    }
    const std::string file = temp / "a.safetensors";
    io::write_safetensors(file, checkpoint::as_arrays(changed));
    return test::error_of([&] { load_tokenizer(file); });
  };
  CHECK_THAT(error_with("encoder.conv_in.weight", torch::zeros({1 << 30, 0, 3, 3})),
             Contains("encoder.conv_in.weight is [1073741824, 0, 3, 3], expected 4 sizes above 0"));
  CHECK_THAT(error_with("encoder.conv_in.weight", torch::zeros({3 << 10, 3, 3, 3})),
             Contains("encoder.conv_blocks.0.res.0.conv1.weight is [32, 32, 3, 3], expected the "
                      "sizes [3072, 3, 3] behind the first"));
  CHECK_THAT(error_with("quantize.embedding.weight", torch::zeros({4, 3})),
             Contains("quantize.embedding.weight is [4, 3], but quant_conv gives 8 channels"));
  CHECK_THAT(error_with("encoder.conv_blocks.1.res.0.conv1.weight", torch::zeros({48, 32, 3, 3})),
             Contains("expected a multiple of the base width 32"));
}

TEST_CASE("image tokenizer: wrong codes and images are told", "[infer]") {
  const auto loaded = load_tokenizer(golden("vq_ema/ckpt.pt"), {.device = "cpu"});
  const infer::ImageTokenizer& model = *loaded.model;
  const auto error = [&](const torch::Tensor& code, int64_t side) {
    return test::error_of([&] { model.decode(code, side, side); });
  };
  CHECK(error(torch::zeros({1, 3}, torch::kInt64), 4) ==
        "tokenizer: 3 codes for 1 images of 4 x 4, expected 4");
  CHECK_THAT(error(torch::zeros({1, 4}, torch::kInt64), 5), Contains("multiples of 2"));
  CHECK_FALSE(error(torch::full({1, 4}, 96, torch::kInt64), 4).empty());
  CHECK_THAT(test::error_of([&] {
               model.encode(torch::zeros({1, 3, 4, 5}));
             }),
             Contains("multiples of 2"));
}
