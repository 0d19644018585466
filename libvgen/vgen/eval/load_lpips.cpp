#include "vgen/eval/load_lpips.h"

#include "vgen/checkpoint/named_tensors.h"

namespace vgen::eval {
namespace {

tokenizer::NamedWeights read_weights(const std::string& path, const std::string& what) {
  require(!path.empty(), ErrorCode::kInvalidArgument, "LPIPS: ", what, " is missing; ",
          tokenizer::lpips_weights_help());
  tokenizer::NamedWeights weights;
  try {
    for (const io::NamedArray& item : io::load_state_dict(path).tensors) {
      weights.emplace(item.name, checkpoint::as_tensor(item.array));
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNotFound) throw;
    throw_error(ErrorCode::kNotFound, error.what(), "; ", tokenizer::lpips_weights_help());
  }
  return weights;
}

}  // namespace

tokenizer::Lpips load_lpips(const std::string& vgg_path, const std::string& lin_path) {
  const auto vgg = read_weights(vgg_path, "--lpips-vgg");
  const auto lin = read_weights(lin_path, "--lpips-lin");
  try {
    tokenizer::Lpips lpips(vgg, lin);
    lpips->eval();
    return lpips;
  } catch (Error& error) {
    error.add_context(str_cat(vgg_path, ", ", lin_path));
    throw;
  }
}

}  // namespace vgen::eval
