#pragma once
// How this process was started among others: by torchrun, srun or mpirun, or by hand.

#include <cstdint>

namespace vgen::dist {

struct Launch {
  int64_t rank = 0;
  int64_t world_size = 1;
  int64_t local_rank = 0;  ///< among the processes of this machine: which GPU to take
};

/// RANK, WORLD_SIZE and LOCAL_RANK of the environment, as torchrun sets them; without WORLD_SIZE
/// this is the only process. LOCAL_RANK is 0 unless it is set. Throws Error(kInvalidArgument) for
/// what is no number or no rank.
Launch launch_from_environment();

}  // namespace vgen::dist
