#include "vgen/core/error.h"
#include "vgen/dist/detail/backends.h"

namespace vgen::dist::detail {

c10::intrusive_ptr<c10d::Backend> make_nccl(const BackendPlace& /*place*/) {
  throw_error(ErrorCode::kUnavailable,
              "this build has no CUDA, and with it no NCCL; set device: cpu, or build with "
              "-DVGEN_CUDA=ON");
}

}  // namespace vgen::dist::detail
