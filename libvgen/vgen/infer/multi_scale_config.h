#pragma once
// The config of VAR's tokenizer read off its weights, for files that come without one.

#include <vector>

#include "vgen/io/state_dict.h"
#include "vgen/tokenizer/multi_scale_vqvae.h"

namespace vgen::infer {

/// Whether tensors are those of a tokenizer of several scales, by their names.
bool is_multi_scale(const io::StateDict& state);

/// Widths, depths, kernel, phi and the codebook from names and shapes. No shape tells the sides of
/// the scales: `patch_nums`, or where it is empty the published ones with as many scales as the
/// file counts usage of (10: those of 256 pixels; 14: of 1024). Throws Error(kInvalidArgument) for
/// weights of something else, and for another number of scales without `patch_nums`.
tokenizer::MultiScaleVqvaeConfig infer_multi_scale_config(const io::StateDict& state,
                                                          const std::vector<int64_t>& patch_nums);

}  // namespace vgen::infer
