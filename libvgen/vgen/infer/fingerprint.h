#pragma once
// What tells two sets of weights apart: codes of one tokenizer mean nothing to another.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "vgen/checkpoint/named_tensors.h"

namespace vgen::infer {

/// XXH64 (Yann Collet's xxHash, its specification 0.1.1). xxh64 of no bytes is ef46db3751d8e999.
/// It tells apart and finds damage; it is no protection against malice.
uint64_t xxh64(std::span<const std::byte> bytes, uint64_t seed = 0);

/// "vqgan-0123456789abcdef": `kind`, `traits` (what changes the result and is not in the weights,
/// "codebook_l2_norm=true") and the name, shape and value of every tensor in their order. The same
/// for every file format, device and precision: the values count as the module holds them.
std::string fingerprint(const std::string& kind, const std::string& traits,
                        const checkpoint::NamedTensors& tensors);

}  // namespace vgen::infer
