#include "vgen/io/convert.h"

#include <filesystem>

#include "vgen/io/npy.h"
#include "vgen/io/state_dict.h"
#include "vgen/io/torch_file.h"

namespace vgen::io {
namespace {

void write_torch(const ConvertConfig& config, const StateDict& state) {
  TorchDict tensors;
  for (const auto& [name, array] : state.tensors) tensors.add(name, {ArrayView(array)});
  if (config.nest.empty()) return write_torch_file(config.output, tensors);
  TorchDict root;
  root.add(config.nest, {std::move(tensors)});
  write_torch_file(config.output, root);
}

void write_npz(const ConvertConfig& config, const StateDict& state) {
  NpzWriter writer(config.output);
  for (const auto& [name, array] : state.tensors) {
    try {
      writer.add(name, array);
    } catch (Error& error) {
      if (error.code() == ErrorCode::kInvalidArgument) {
        error.add_context(str_cat(config.output, ": tensor '", printable(name), "'"));
      }
      throw;
    }
  }
  writer.finish();
}

}  // namespace

ConvertResult convert(const ConvertConfig& config) {
  const std::string extension = to_lower(std::filesystem::path(config.output).extension().string());
  const bool is_torch = extension == ".pt" || extension == ".pth" || extension == ".bin";
  require(is_torch || extension == ".safetensors" || extension == ".npz",
          ErrorCode::kInvalidArgument, config.output, ": extension '", printable(extension),
          "', expected .safetensors, .pt, .pth, .bin or .npz");
  require(config.nest.empty() || is_torch, ErrorCode::kInvalidArgument, config.output,
          ": only PyTorch files nest tensors under a key");
  require(config.must_overwrite || !std::filesystem::exists(config.output),
          ErrorCode::kInvalidArgument, config.output, ": exists; pass --force to replace it");
  StateDict state = load_state_dict(config.input, config.key);
  ConvertResult result{.key = state.key, .num_tensors = state.tensors.size()};
  for (const auto& [name, array] : state.tensors) result.size_bytes += array.data.size();
  if (is_torch) {
    write_torch(config, state);
  } else if (extension == ".npz") {
    write_npz(config, state);
  } else {
    state.metadata.emplace("format", "pt");  // what PyTorch's own tools write and ask for
    write_safetensors(config.output, state.tensors, state.metadata);
  }
  return result;
}

}  // namespace vgen::io
