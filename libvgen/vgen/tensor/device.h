#pragma once
// Devices and precisions as users name them.

#include <ATen/core/Tensor.h>

#include <string>

namespace vgen {

/// "cpu", "cuda", "cuda:1", or "auto" (cuda when there is one, else cpu). Throws
/// Error(kInvalidArgument) for another word, Error(kUnavailable) for a device that is not there.
c10::Device parse_device(const std::string& text);

/// CUDA devices that LibTorch can use.
int64_t num_cuda_devices();

/// The device of one of several processes of a machine, a GPU for each: "auto" and "cuda" become
/// "cuda:<local_rank>". Of a single visible GPU that one: launchers such as srun show each process
/// its own. Every other text stays as it is, and all do without a GPU. num_gpus:
/// num_cuda_devices(). Throws Error(kUnavailable) for a rank that no GPU is left for.
std::string device_for_local_rank(const std::string& text, int64_t local_rank, int64_t num_gpus);

/// "fp32", "bf16" or "fp16": the dtype that models compute in. Throws Error(kInvalidArgument).
c10::ScalarType parse_precision(const std::string& text);
std::string precision_name(c10::ScalarType dtype);

/// The words that parse_precision takes, for --help and configs.
inline constexpr const char* kPrecisionNames[] = {"fp32", "bf16", "fp16"};

/// The most that this process has used so far: on CUDA the bytes of tensors on that device, on the
/// CPU the resident memory (0 where the system does not tell). 1e6 bytes.
double peak_memory_mb(c10::Device device);

/// Threads of LibTorch's operators. 0 = one per core that this process may run on (its affinity
/// mask, not the machine's cores). Returns the number set.
int set_num_threads(int num_threads);
/// The same where several processes share the cores of a machine: 0 = a share of those cores.
/// local_processes 0: unknown, and so 1.
void share_threads(int num_threads, int64_t local_processes);

}  // namespace vgen
