#pragma once
// VAR's transformer for inference: packed weights, a key-value cache that is filled scale by scale,
// never moved, and given up after the last scale. S sequences (images and, with guidance, their
// twins without a class), P = p^2 tokens of a scale, C width, Z channels of the tokenizer's latent,
// V codes.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>

#include "vgen/infer/load_var.h"
#include "vgen/kernels/cpu_isa.h"

namespace vgen::infer {

struct VarEngineOptions {
  /// What matrices are stored in: fp32, bf16, int8 (a scale per output). On the CPU activations are
  /// float32, which for bf16 with AMX are rounded where they are multiplied; on other devices
  /// products are done in float32 or bfloat16, and int8 is not there.
  std::string precision = "fp32";
  std::string device = "cpu";                     ///< as parse_device
  kernels::CpuIsa isa = kernels::best_cpu_isa();  ///< highest instruction level used
  bool use_own_kernels = true;                    ///< false: LibTorch's products on the CPU too
};

/// Not thread-safe: one thread drives it.
class VarEngine {
 public:
  virtual ~VarEngine() = default;

  /// Begins S sequences with these labels, int64 (S), 0..num_classes, num_classes = no class. What
  /// was there is forgotten. Throws Error(kInvalidArgument).
  virtual void start(const at::Tensor& label_S) = 0;

  /// Logits of the next scale, float32 (S, P, V), on the device. next_BPZ: what the quantizer's
  /// next_input() gives for it, float32, S a multiple of B: row b serves the sequences b, b + B,
  /// ...; not read for the first scale. Throws Error(kInvalidArgument) behind the last scale.
  virtual at::Tensor run_scale(const at::Tensor& next_BPZ) = 0;

  virtual const var::VarConfig& config() const = 0;
  virtual int64_t weight_bytes() const = 0;  ///< of the matrices that each scale reads
  /// "cpu, avx2, bf16 weights", "cuda:0, bf16".
  virtual std::string description() const = 0;
};

/// Packs the weights, letting go of each as it is packed. Throws Error(kInvalidArgument,
/// kUnavailable).
std::unique_ptr<VarEngine> make_var_engine(VarWeights weights,
                                           const VarEngineOptions& options = {});

}  // namespace vgen::infer
