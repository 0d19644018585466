#pragma once
// The safetensors format: u64 header size, JSON header, raw little-endian tensors.
// https://github.com/huggingface/safetensors (format description of version 0.8).

#include <map>
#include <string>
#include <vector>

#include "vgen/io/array.h"
#include "vgen/io/mapped_file.h"

namespace vgen::io {

/// Names to texts: the header's `__metadata__`.
using Metadata = std::map<std::string, std::string>;

struct Safetensors {
  std::vector<NamedArray> tensors;  ///< in the order of their bytes; they keep the file mapped
  Metadata metadata;

  const Array* find(std::string_view name) const;
};

/// Maps a file and checks all of its header: every byte of the data belongs to exactly one tensor.
/// Tensor bytes are not copied, except where a file leaves them unaligned or a bool is neither 0
/// nor 1. Stricter than the reference library: duplicate names are refused too, and so is text
/// before the opening brace. Throws Error(kNotFound, kDataCorrupt, kUnavailable).
Safetensors read_safetensors(const std::string& path);
Safetensors parse_safetensors(const FileBytes& file);

/// Writes atomically (see AtomicFile), streaming from the views: nothing is copied in memory.
/// Tensors lie sorted by descending item size, then name, so all are aligned. Names must be unique;
/// `__metadata__` is no name for a tensor. The format has no complex128: Error(kInvalidArgument).
void write_safetensors(const std::string& path, const std::vector<NamedArray>& tensors,
                       const Metadata& metadata = {});

/// The plain file names that `model.safetensors.index.json` (or pytorch_model.bin.index.json)
/// lists, each with the tensors that must be in it; names with a folder part are refused.
std::map<std::string, std::vector<std::string>> parse_shard_index(const FileBytes& file);

}  // namespace vgen::io
