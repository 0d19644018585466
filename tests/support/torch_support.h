#pragma once
// Comparing tensors in tests.

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <string>

namespace vgen::test {

/// Begins a [cuda] case: `if (test::lacks_cuda()) return;`. Without a CUDA device it prints
/// "skipped: no CUDA device", by which CTest shows the entry ROOM_cuda as skipped.
bool lacks_cuda();

/// |actual - expected| <= absolute + relative * |expected|, for every element.
struct Tolerance {
  double absolute = 0;
  double relative = 0;
};
inline constexpr Tolerance kExact{0, 0};
inline constexpr Tolerance kFloat32{1e-5, 1e-5};  ///< the same maths in another order
inline constexpr Tolerance kParity{1e-4, 0};      ///< against the official code, fp32 on the CPU

/// CHECK_THAT(actual, AllClose(expected, kFloat32)): same shape, all elements near. The message
/// has the worst difference and its index.
class AllClose : public Catch::MatcherBase<torch::Tensor> {
 public:
  AllClose(torch::Tensor expected, Tolerance tolerance);
  bool match(const torch::Tensor& actual) const override;
  std::string describe() const override;

 private:
  torch::Tensor expected_;
  Tolerance tolerance_;
  mutable std::string complaint_;
};

}  // namespace vgen::test

namespace Catch {
template <>
struct StringMaker<torch::Tensor> {
  static std::string convert(const torch::Tensor& tensor);
};
}  // namespace Catch
