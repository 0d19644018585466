#pragma once
// How this process was started among others: by torchrun, srun or mpirun, or by hand. The one place
// that reads their environment variables.

#include <cstdint>
#include <string>

namespace vgen::dist {

struct Launch {
  int64_t rank = 0;
  int64_t world_size = 1;
  int64_t local_rank = 0;         ///< among the processes of this machine: which GPU to take
  int64_t local_world_size = 1;   ///< processes of this machine; 0: the launcher does not say
  std::string launcher = "none";  ///< torchrun, srun, mpirun, environment, none
  std::string master_addr = {};   ///< host of rank 0, where the ranks meet; empty: unknown
  int64_t master_port = 0;
  /// torchrun keeps the store itself: rank 0 must not open one.
  bool is_store_hosted = false;
  std::string interface = {};  ///< network interface that Gloo has to use; empty: it may choose
};

/// What the environment says, in this order of preference:
///   RANK and WORLD_SIZE (torchrun, or set by hand) with LOCAL_RANK (0 unless set) and
///     LOCAL_WORLD_SIZE;
///   OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE of Open MPI's mpirun, or PMI_RANK,
///     PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS of MPICH's and Intel MPI's;
///   SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID of srun, rank 0 on the first host of
///     SLURM_STEP_NODELIST. The shell of sbatch or salloc is no step of srun: one process.
/// mpirun comes before srun, which it may use to reach its hosts. Without any of these, or with one
/// task of mpirun or srun, this is the only process.
///
/// The ranks meet at MASTER_ADDR and MASTER_PORT. Unless these are set, that is 127.0.0.1 where all
/// ranks are known to be on this host, else what srun says; the port follows from SLURM's job and
/// step, for others it is 29500. GLOO_SOCKET_IFNAME is the interface.
///
/// Throws Error(kInvalidArgument) for what is no number, no rank or no port. Ranks that only share
/// work by their number need not meet, so an unknown master_addr is no error here.
Launch launch_from_environment();

/// For ranks that are about to meet. Throws Error(kInvalidArgument) where several have no
/// master_addr, or an interface that this host has not.
void require_meeting_point(const Launch& launch);

/// The same for all processes of a machine, in containers and network namespaces too, and another
/// one on every other machine: the kernel's boot id; the host's name where there is none.
std::string host_id();

/// The first host of a SLURM list such as "gpu[03-07,12],login1": "gpu03". Throws
/// Error(kInvalidArgument) where the list does not begin with a host.
std::string first_slurm_host(const std::string& nodelist);

}  // namespace vgen::dist
