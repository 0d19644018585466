#include "vgen/io/state_dict.h"

#include <algorithm>

namespace vgen::io {

const Array* StateDict::find(std::string_view name) const {
  const auto found = std::ranges::find(tensors, name, &NamedArray::name);
  return found == tensors.end() ? nullptr : &found->array;
}

StateDict load_state_dict(const std::string& path, const std::string& key) {
  require(key == "auto" || key == "all", ErrorCode::kNotFound, path, ": no key '", key, "'");
  Safetensors file = read_safetensors(path);
  return {.tensors = std::move(file.tensors),
          .metadata = std::move(file.metadata),
          .key = "",
          .source = path};
}

}  // namespace vgen::io
