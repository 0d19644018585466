#include "vgen/infer/fingerprint.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <string_view>

using namespace vgen;

namespace {

uint64_t hash(std::string_view text, uint64_t seed = 0) {
  return infer::xxh64(std::as_bytes(std::span(text.data(), text.size())), seed);
}

}  // namespace

TEST_CASE("xxh64: known answers", "[infer]") {
  CHECK(hash("") == 0xef46db3751d8e999u);
  CHECK(hash("a") == 0xd24ec4f1a98c6e5bu);
  CHECK(hash("abc") == 0x44bc2cf5ad770999u);
  CHECK(hash("123456789") == 0x8cb841db40e6ae83u);
  CHECK(hash("The quick brown fox jumps over the lazy dog") == 0x0b242d361fda71bcu);
  CHECK(hash("", 2654435761u) == 0xac75fda2929b17efu);
}

TEST_CASE("fingerprint: a function of kind, traits, names, shapes and values", "[infer]") {
  const auto base = torch::arange(6, torch::kFloat32).view({2, 3});
  const auto of = [](const std::string& kind, const std::string& traits, const std::string& name,
                     const torch::Tensor& tensor) {
    return infer::fingerprint(kind, traits, {{name, tensor}});
  };
  const std::string expected = of("vqgan", "l2=true", "w", base);
  CHECK(expected == "vqgan-e0b152dc397fb67c");  // never changes: files hold it
  CHECK(of("vqgan", "l2=true", "w", base.t().contiguous().t()) == expected);  // layout
  CHECK(of("var", "l2=true", "w", base).substr(3) != expected.substr(5));
  CHECK(of("vqgan", "l2=false", "w", base) != expected);
  CHECK(of("vqgan", "l2=true", "v", base) != expected);
  CHECK(of("vqgan", "l2=true", "w", base.view({3, 2})) != expected);
  CHECK(of("vqgan", "l2=true", "w", base + 1e-6) != expected);
}
