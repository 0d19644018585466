#pragma once
// The config of a VQGAN read off its weights, for files that come without one.

#include "vgen/io/state_dict.h"
#include "vgen/tokenizer/vqgan.h"

namespace vgen::infer {

/// Widths, depths and the codebook from the names and shapes of the tensors. What weights do not
/// tell keeps its default: codebook_l2_norm (true, as in all official checkpoints) and what only
/// training uses. Throws Error(kInvalidArgument) for weights of something else: which tensor is
/// missing or misshaped. The model of the returned config is not much larger than the file, so a
/// hostile file cannot ask for more memory than it has bytes.
tokenizer::VqganConfig infer_vqgan_config(const io::StateDict& state);

}  // namespace vgen::infer
