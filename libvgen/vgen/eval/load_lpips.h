#pragma once
// LPIPS from the two files that its weights come in.

#include <string>

#include "vgen/tokenizer/lpips.h"

namespace vgen::eval {

/// vgg_path: VGG16 of torchvision; lin_path: the linear layers of LPIPS (vgg.pth), any format that
/// io::load_state_dict reads. In evaluation mode. Throws Error: kInvalidArgument when a path is
/// empty or the tensors are others, kNotFound when there is no such file (all three tell where the
/// files come from), and what the reader throws.
tokenizer::Lpips load_lpips(const std::string& vgg_path, const std::string& lin_path);

}  // namespace vgen::eval
