#include "vgen/infer/detail/slots.h"

namespace vgen::infer {

void Slots::name(int64_t slot) {
  require(slot >= 0 && slot < size(), ErrorCode::kInvalidArgument, "gpt engine: slot ", slot,
          ", expected 0 to ", size() - 1);
  require(!is_named_[slot], ErrorCode::kInvalidArgument, "gpt engine: slot ", slot,
          " is named twice in one call");
  is_named_[slot] = true;
}

void Slots::check_prompt(const GptPrompt& prompt) const {
  if (prompt.is_null) {
    require(config_.model_type != "c2i" || config_.class_rows() > config_.num_classes,
            ErrorCode::kInvalidArgument,
            "the model was trained with class_dropout_prob 0 and has no null class to guide with; "
            "use a cfg-scale of 1");
    return;
  }
  if (config_.model_type == "c2i") {
    require(prompt.label >= 0 && prompt.label < config_.num_classes, ErrorCode::kInvalidArgument,
            "class ", prompt.label, ": the model has classes 0 to ", config_.num_classes - 1);
    return;
  }
  const std::vector<int64_t> expected = {config_.cls_token_num, config_.caption_dim};
  require(prompt.caption.defined() && prompt.caption.sizes() == expected,
          ErrorCode::kInvalidArgument, "caption features are ",
          prompt.caption.defined() ? format_shape(prompt.caption.sizes().vec()) : "missing",
          ", expected ", format_shape(expected));
}

void Slots::start(std::span<const GptPrompt> prompts) {
  is_named_.assign(is_named_.size(), false);
  for (const GptPrompt& prompt : prompts) {
    name(prompt.slot);
    check_prompt(prompt);
    require(prompt.num_padding >= 0 && prompt.num_padding < config_.cls_token_num,
            ErrorCode::kInvalidArgument, "caption of ", config_.cls_token_num, " rows, ",
            prompt.num_padding, " of them padding: at least one must be left");
  }
  for (const GptPrompt& prompt : prompts) {
    length_[prompt.slot] = 0;
    first_[prompt.slot] = prompt.num_padding;
  }
}

void Slots::advance(std::span<const GptStep> steps) {
  is_named_.assign(is_named_.size(), false);
  for (const GptStep& step : steps) {
    name(step.slot);
    require(step.token >= 0 && step.token < config_.vocab_size, ErrorCode::kInvalidArgument,
            "token ", step.token, ": the vocabulary has 0 to ", config_.vocab_size - 1);
    require(length_[step.slot] >= 0, ErrorCode::kInvalidArgument, "gpt engine: slot ", step.slot,
            " was not started");
    require(length_[step.slot] < config_.block_size - 1, ErrorCode::kInvalidArgument,
            "gpt engine: slot ", step.slot, " already holds ", config_.block_size - 1,
            " tokens, the last one that is fed");
  }
  for (const GptStep& step : steps) ++length_[step.slot];
}

}  // namespace vgen::infer
