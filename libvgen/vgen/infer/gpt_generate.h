#pragma once
// Whole images of codes from an engine.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "vgen/infer/gpt_engine.h"

namespace vgen::infer {

/// LlamaGen's sampling settings (its generate.py: generate).
struct GenerateSettings {
  double cfg_scale = 1;  ///< guidance: null + (conditional - null) * cfg_scale; at most 1 = off
  /// quirk: guidance ends after the tokens 0..cfg_interval + 1; -1 = it never ends.
  int64_t cfg_interval = -1;
  kernels::TokenFilter filter = {};
  uint64_t seed = 0;

  bool is_guided() const { return cfg_scale > 1; }
  int64_t slots_per_image() const { return is_guided() ? 2 : 1; }
};

/// Throws Error(kInvalidArgument) for settings out of range, by the names of their options.
void validate(const GenerateSettings& settings);

struct GenerateRequest {
  uint64_t image = 0;       ///< its number: with the seed all that its randomness depends on
  GptPrompt prompt = {};    ///< `slot` and `is_null` are not read
  at::Tensor given_N = {};  ///< int64: the first codes, to go on from; at most block_size
};

/// Codes of all requests, int64 (requests, block_size). As many run at a time as the engine has
/// slots for. `on_tokens` is called with the number of tokens that each step made.
/// Throws Error(kInvalidArgument) when the slots do not hold one image, and as the engine does.
at::Tensor generate(GptEngine& engine, std::span<const GenerateRequest> requests,
                    const GenerateSettings& settings,
                    const std::function<void(int64_t)>& on_tokens = {});

}  // namespace vgen::infer
