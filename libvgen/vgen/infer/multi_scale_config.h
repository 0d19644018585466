#pragma once
// The config of VAR's tokenizer read off its weights, for files that come without one.

#include <vector>

#include "vgen/io/state_dict.h"
#include "vgen/tokenizer/multi_scale_vqvae.h"

namespace vgen::infer {

/// In the metadata of what vgen trains, the sides of the scales: "[1, 2, 4]".
inline constexpr const char* kPatchNumsKey = "patch_nums";

/// Whether tensors are those of a tokenizer of several scales, by their names.
bool is_multi_scale(const io::StateDict& state);

/// The sides of the scales that the weights were trained with, where their metadata tells; else
/// empty. Throws Error(kDataCorrupt).
std::vector<int64_t> recorded_scales(const io::StateDict& state);

/// Widths, depths, kernel, phi and the codebook from names and shapes; quant_resi, which no tensor
/// tells, is taken as the published 0.5. No shape tells the sides of the scales: `patch_nums`, or
/// where it is empty the recorded ones, or without them the published ones with as many scales as
/// the file counts usage of (10: those of 256 pixels; 14: of 1024). Throws Error(kInvalidArgument)
/// for weights of something else, and for another number of scales that nothing tells.
tokenizer::MultiScaleVqvaeConfig infer_multi_scale_config(const io::StateDict& state,
                                                          const std::vector<int64_t>& patch_nums);

}  // namespace vgen::infer
