#pragma once
// Mixed precision of LibTorch's operators.

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

namespace vgen {

/// While this lives, operators on devices of this type compute in `dtype` where that is safe, and
/// in float32 where it is not (LibTorch's autocast lists). Casts of weights are kept until it ends,
/// so a weight is cast once. kFloat: none of it. Of the thread that makes it; the backward pass
/// runs outside of it.
class Autocast {
 public:
  Autocast(c10::Device device, c10::ScalarType dtype);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  c10::DeviceType type_;
  bool was_enabled_;
  c10::ScalarType old_dtype_;
};

/// What autocast computes matrix products on that device in; `otherwise` where it is off.
c10::ScalarType autocast_dtype(c10::Device device, c10::ScalarType otherwise);

}  // namespace vgen
