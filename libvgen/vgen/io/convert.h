#pragma once
// Weights from one file format to another: `vgen convert`.

#include <cstdint>
#include <string>

namespace vgen::io {

struct ConvertConfig {
  std::string input;         ///< anything that load_state_dict reads
  std::string output;        ///< .safetensors, .pt, .pth, .bin or .npz: the name tells the format
  std::string key = "auto";  ///< which dict of the input, see load_state_dict
  std::string nest = {};     ///< .pt: put the tensors under this key, e.g. "model"
  bool must_overwrite = false;
};

struct ConvertResult {
  std::string key;  ///< where in the input the tensors lay, "" = its root
  uint64_t num_tensors = 0;
  uint64_t size_bytes = 0;  ///< of the tensors
};

/// Every tensor keeps its name, dtype and bits. Scalars beside them go to the metadata of
/// .safetensors and are dropped elsewhere. The output appears whole or not at all. Throws Error:
/// kInvalidArgument when it exists (unless must_overwrite), has an unknown extension, or its format
/// lacks a dtype; else like load_state_dict and AtomicFile.
ConvertResult convert(const ConvertConfig& config);

}  // namespace vgen::io
