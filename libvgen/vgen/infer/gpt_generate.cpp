#include "vgen/infer/gpt_generate.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>

namespace vgen::infer {

namespace {

// One batch: image i has slot i, its unguided twin slot size + i.
class Batch {
 public:
  Batch(GptEngine& engine, std::span<const GenerateRequest> requests,
        const GenerateSettings& settings)
      : engine_(engine),
        requests_(requests),
        settings_(settings),
        size_(static_cast<int64_t>(requests.size())),
        tokens_(requests.size()) {
    for (int64_t i = 0; i < size_; ++i) {
      choices_.push_back({.row = i,
                          .null_row = settings.is_guided() ? size_ + i : -1,
                          .cfg_scale = settings.cfg_scale,
                          .filter = settings.filter,
                          .seed = settings.seed,
                          .image = requests[i].image});
    }
    for (const bool is_null : {false, true}) {
      if (is_null && !settings.is_guided()) break;
      for (int64_t i = 0; i < size_; ++i) {
        GptPrompt prompt = requests[i].prompt;
        prompt.slot = is_null ? size_ + i : i;
        prompt.is_null = is_null;
        prompts_.push_back(std::move(prompt));
      }
    }
    steps_.resize(prompts_.size());
  }

  void run(int64_t* code_BN, const std::function<void(int64_t)>& on_tokens) {
    const int64_t num_tokens = engine_.config().block_size;
    engine_.prefill(prompts_);
    for (int64_t i = 0;; ++i) {
      choose(i);
      for (int64_t b = 0; b < size_; ++b) take_given(b, i);
      for (int64_t b = 0; b < size_; ++b) code_BN[b * num_tokens + i] = tokens_[b];
      if (on_tokens) on_tokens(size_);
      if (i + 1 == num_tokens) return;
      feed();
    }
  }

 private:
  void take_given(int64_t b, int64_t index) {
    const at::Tensor& given_N = requests_[b].given_N;
    if (given_N.defined() && index < given_N.size(0)) {
      tokens_[b] = given_N.const_data_ptr<int64_t>()[index];
    }
  }

  void choose(int64_t index) {
    if (settings_.cfg_interval >= 0 && index > settings_.cfg_interval + 1) {
      // From here on guidance is off for good, so the twins are not run any more.
      steps_.resize(tokens_.size());
      for (GptChoice& choice : choices_) choice.null_row = -1;
    }
    for (GptChoice& choice : choices_) choice.index = index;
    engine_.sample(choices_, tokens_);
  }

  void feed() {
    for (size_t row = 0; row < steps_.size(); ++row) {
      const auto slot = static_cast<int64_t>(row);
      steps_[row] = {.slot = slot, .token = tokens_[slot % size_]};
    }
    engine_.decode(steps_);
  }

  GptEngine& engine_;
  std::span<const GenerateRequest> requests_;
  const GenerateSettings& settings_;
  int64_t size_;
  std::vector<GptPrompt> prompts_;
  std::vector<GptStep> steps_;
  std::vector<GptChoice> choices_;
  std::vector<int64_t> tokens_;
};

}  // namespace

void validate(const GenerateSettings& settings) {
  const auto check = [](bool is_valid, const char* name, double value, const char* expected) {
    require(is_valid, ErrorCode::kInvalidArgument, name, " ", value, ": expected ", expected);
  };
  const kernels::TokenFilter& filter = settings.filter;
  check(settings.cfg_scale >= 0 && std::isfinite(settings.cfg_scale), "cfg-scale",
        settings.cfg_scale, "at least 0");
  check(settings.cfg_interval >= -1, "cfg-interval", static_cast<double>(settings.cfg_interval),
        "a token index, or -1 for guidance throughout");
  check(filter.temperature >= 0 && std::isfinite(filter.temperature), "temperature",
        filter.temperature, "at least 0");
  check(filter.top_k >= 0, "top-k", static_cast<double>(filter.top_k), "at least 0, 0 = off");
  check(filter.top_p > 0 && filter.top_p <= 1, "top-p", filter.top_p,
        "above 0 and at most 1, 1 = off");
}

at::Tensor generate(GptEngine& engine, std::span<const GenerateRequest> requests,
                    const GenerateSettings& settings,
                    const std::function<void(int64_t)>& on_tokens) {
  const int64_t num_tokens = engine.config().block_size;
  const int64_t batch_size = engine.num_slots() / settings.slots_per_image();
  require(batch_size > 0, ErrorCode::kInvalidArgument, "gpt engine: ", engine.num_slots(),
          " slots, a guided image takes 2");
  const auto num_requests = static_cast<int64_t>(requests.size());
  for (const GenerateRequest& request : requests) {
    const at::Tensor& given_N = request.given_N;
    require(!given_N.defined() || (given_N.scalar_type() == at::kLong && given_N.dim() == 1 &&
                                   given_N.is_contiguous() && given_N.size(0) <= num_tokens),
            ErrorCode::kInvalidArgument, "given codes: expected at most ", num_tokens, ", int64");
  }
  at::Tensor code_BN = at::empty({num_requests, num_tokens}, at::kLong);
  for (int64_t first = 0; first < num_requests; first += batch_size) {
    const int64_t size = std::min(batch_size, num_requests - first);
    Batch batch(engine, requests.subspan(first, size), settings);
    batch.run(code_BN.mutable_data_ptr<int64_t>() + first * num_tokens, on_tokens);
  }
  return code_BN;
}

}  // namespace vgen::infer
