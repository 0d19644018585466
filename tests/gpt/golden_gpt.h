#pragma once
// The golden models of the GPT tests.

#include <torch/torch.h>

#include <string>

#include "vgen/gpt/transformer.h"

namespace vgen::test {

/// The config of gpt_c2i, gpt_gqa or gpt_t2i_8 (their meta.json), every dropout off.
gpt::GptConfig golden_config(const std::string& name);

/// That model with its golden weights, in eval mode.
gpt::Transformer golden_gpt(const std::string& name);

}  // namespace vgen::test
