#include "support/torch_support.h"

#include <iostream>
#include <sstream>

namespace vgen::test {

bool lacks_cuda() {
  if (torch::cuda::is_available()) return false;
  std::cout << "skipped: no CUDA device: " << Catch::getResultCapture().getCurrentTestName()
            << std::endl;
  return true;
}

AllClose::AllClose(torch::Tensor expected, Tolerance tolerance)
    : expected_(std::move(expected)), tolerance_(tolerance) {}

bool AllClose::match(const torch::Tensor& actual) const {
  std::ostringstream out;
  if (actual.sizes() != expected_.sizes()) {
    out << "has the shape " << expected_.sizes();
    complaint_ = out.str();
    return false;
  }
  if (actual.numel() == 0) return true;
  const auto x = actual.detach().cpu().to(torch::kFloat64).flatten();
  const auto y = expected_.detach().cpu().to(torch::kFloat64).flatten();
  const auto excess = (x - y).abs() - tolerance_.relative * y.abs() - tolerance_.absolute;
  // NaN compares false: an element that is not a number never passes, unless both are.
  const auto good = (excess <= 0).logical_or(x == y).logical_or(x.isnan().logical_and(y.isnan()));
  const int64_t num_bad = x.numel() - good.sum().item<int64_t>();
  if (num_bad == 0) return true;
  const auto ranked = excess.nan_to_num(1e300, 1e300).masked_fill(good, -1.0);
  const int64_t worst = ranked.argmax().item<int64_t>();
  out << "is within " << tolerance_.absolute << " + " << tolerance_.relative
      << " * |expected|: " << num_bad << " of " << x.numel()
      << " elements are not; worst at flat index " << worst << ": " << x[worst].item<double>()
      << ", expected " << y[worst].item<double>();
  complaint_ = out.str();
  return false;
}

std::string AllClose::describe() const { return complaint_; }

}  // namespace vgen::test

std::string Catch::StringMaker<torch::Tensor>::convert(const torch::Tensor& tensor) {
  std::ostringstream out;
  out << "tensor " << tensor.dtype() << " " << tensor.sizes();
  return out.str();
}
