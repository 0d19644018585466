#include "vgen/infer/gpt_engine.h"

#include <utility>

#include "vgen/infer/detail/gpt_cpu_engine.h"
#include "vgen/infer/detail/gpt_tensor_engine.h"
#include "vgen/tensor/device.h"

namespace vgen::infer {

std::unique_ptr<GptEngine> make_gpt_engine(GptWeights weights, const GptEngineOptions& options) {
  require(options.num_slots >= 1, ErrorCode::kInvalidArgument, "gpt engine: ", options.num_slots,
          " slots, expected at least 1");
  require(options.precision == "fp32" || options.precision == "bf16" || options.precision == "int8",
          ErrorCode::kInvalidArgument, "precision '", printable(options.precision),
          "': expected fp32, bf16 or int8");
  const bool is_cpu = parse_device(options.device).is_cpu();
  if (is_cpu && options.use_own_kernels) return make_gpt_cpu_engine(std::move(weights), options);
  return make_gpt_tensor_engine(std::move(weights), options);
}

}  // namespace vgen::infer
