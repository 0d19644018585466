#pragma once
// Which slots hold sequences, and how long they are: the checks that engines share.

#include <span>
#include <string>
#include <vector>

#include "vgen/infer/gpt_engine.h"

namespace vgen::infer {

class Slots {
 public:
  Slots(const gpt::GptConfig& config, int64_t num_slots)
      : config_(config), length_(num_slots, -1), first_(num_slots, 0), is_named_(num_slots) {}

  /// Throws Error(kInvalidArgument) unless all prompts fit; then their slots are started.
  void start(std::span<const GptPrompt> prompts);
  /// The same for steps, whose slots are one longer afterwards.
  void advance(std::span<const GptStep> steps);

  int64_t size() const { return static_cast<int64_t>(length_.size()); }
  int64_t length(int64_t slot) const { return length_[slot]; }
  /// First position that later ones attend to.
  int64_t first(int64_t slot) const { return first_[slot]; }

 private:
  void name(int64_t slot);
  void check_prompt(const GptPrompt& prompt) const;

  gpt::GptConfig config_;
  std::vector<int64_t> length_, first_;
  std::vector<bool> is_named_;  // within one call
};

}  // namespace vgen::infer
