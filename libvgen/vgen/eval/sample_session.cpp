#include "vgen/eval/sample_session.h"

#include <chrono>

#include "vgen/core/log.h"
#include "vgen/tensor/device.h"

namespace vgen::eval {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

SampleSession::SampleSession(const SampleConfig& config) : config_(config) {
  const auto start = Clock::now();
  infer::validate(config.settings);
  require(config.batch_size >= 1, ErrorCode::kInvalidArgument, "batch-size ", config.batch_size,
          ": expected at least 1");
  set_num_threads(static_cast<int>(config.threads));
  const std::string device = parse_device(config.device).str();

  infer::TokenizerOptions decoder = config.decoder;
  decoder.device = device;
  tokenizer_ = infer::load_tokenizer(config.tokenizer, decoder);
  const int64_t step = tokenizer_.model->downsample();
  infer::GptOptions options = config.gpt;
  if (config.image_size != 0) {
    require(config.image_size > 0 && config.image_size % step == 0, ErrorCode::kInvalidArgument,
            "image-size ", config.image_size, ": expected a multiple of the tokenizer's step, ",
            step);
    options.block_size = (config.image_size / step) * (config.image_size / step);
  }
  const infer::LoadedGpt gpt = infer::load_gpt(config.checkpoint, options);
  const gpt::GptConfig& model = gpt.weights.config;
  require(model.model_type == "c2i", ErrorCode::kInvalidArgument, gpt.source,
          ": a text-conditional model; expected one of classes");
  require(model.vocab_size == tokenizer_.model->codebook_size(), ErrorCode::kInvalidArgument,
          gpt.source, ": has a vocabulary of ", model.vocab_size, ", but the codebook of ",
          tokenizer_.source, " has ", tokenizer_.model->codebook_size(),
          " entries; a GPT draws codes of the tokenizer that it was trained with");
  image_size_ = model.grid_size() * step;
  engine_ = make_gpt_engine(gpt.weights,
                            {.precision = config.precision,
                             .num_slots = config.batch_size * config.settings.slots_per_image(),
                             .device = device});
  times_.load_seconds = seconds_since(start);
  log_info("sample: ", gpt.source, " (", gpt.weights_key, "), ", model.n_layer, " layers of width ",
           model.dim, ", ", image_size_, " px, ", engine_->description());
}

SampleSession::Batch SampleSession::draw(const std::vector<Image>& images,
                                         const std::function<void(int64_t)>& on_tokens) {
  std::vector<infer::GenerateRequest> requests;
  for (const Image& image : images) {
    requests.push_back({.image = image.index, .prompt = {.label = image.label}});
  }
  auto start = Clock::now();
  Batch batch;
  batch.code_BN = infer::generate(*engine_, requests, config_.settings, on_tokens);
  times_.tokens += batch.code_BN.numel();
  times_.generate_seconds += seconds_since(start);
  start = Clock::now();
  batch.image_B3HW = tokenizer_.model->decode(batch.code_BN, image_size_, image_size_).cpu();
  times_.decode_seconds += seconds_since(start);
  return batch;
}

}  // namespace vgen::eval
