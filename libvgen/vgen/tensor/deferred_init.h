#pragma once
// Models that are larger than the memory of a process: their large weights have no memory until
// whoever takes the model apart asks for the values, one weight after the other.
//
// A model defers a weight right after it has made it, and sets its values through draw_weight()
// and change_weight() alone. Without a DeferredInit in the thread these do so at once.

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <unordered_map>
#include <vector>

namespace torch::nn {
class Module;
}

namespace vgen {

/// Fills a weight with numbers of that generator; without one, of the default one of its device.
using Draw =
    std::function<void(const at::Tensor& weight, const std::optional<at::Generator>& random)>;
/// Works on the values that are there; no random numbers.
using Change = std::function<void(const at::Tensor& weight)>;

/// While this lives, models that this thread makes on the CPU are deferred. Their values are, bit
/// for bit, those that they would have without it: every weight is drawn once in passing, one at a
/// time, and the state of the generator kept with which it is drawn again. One at a time in a
/// thread.
class DeferredInit {
 public:
  DeferredInit();
  ~DeferredInit();
  DeferredInit(const DeferredInit&) = delete;
  DeferredInit& operator=(const DeferredInit&) = delete;

 private:
  friend void defer_weight(const at::Tensor& weight);
  friend void draw_weight(const at::Tensor& weight, const Draw& draw);
  friend void change_weight(const at::Tensor& weight, const Change& change);
  friend void replace_weight(const at::Tensor& weight, const Change& fill);
  friend void copy_weight(const at::Tensor& weight, const at::Tensor& out);
  friend void move_to(torch::nn::Module& module, c10::Device device);

  struct Step {
    at::Tensor random;  ///< state of the generator before `draw`; undefined: it is a change
    Draw draw;
    Change change;
  };
  struct Weight {
    at::Tensor tensor;
    std::vector<Step> steps;
  };
  /// Of this thread's, null where it has none or the weight is not deferred.
  static Weight* find(const at::Tensor& weight);

  std::unordered_map<const c10::TensorImpl*, Weight> weights_;
};

/// Takes the memory of a weight away, where this thread defers.
void defer_weight(const at::Tensor& weight);
void draw_weight(const at::Tensor& weight, const Draw& draw);
void change_weight(const at::Tensor& weight, const Change& change);
/// Values from elsewhere; what was drawn before is forgotten. `fill` writes all of them.
void replace_weight(const at::Tensor& weight, const Change& fill);

/// The values of a weight, deferred or not, into `out`: float32, contiguous, the same shape.
void copy_weight(const at::Tensor& weight, const at::Tensor& out);

/// module.to(device), also with weights that have no memory.
void move_to(torch::nn::Module& module, c10::Device device);

}  // namespace vgen
