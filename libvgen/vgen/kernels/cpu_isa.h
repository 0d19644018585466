#pragma once
// Which vector instructions the processor has. One binary runs on every processor: sources that
// need more are compiled with their own flags and chosen at run time.

#include <string>

namespace vgen::kernels {

/// Ordered: each level has all instructions of those before it.
enum class CpuIsa {
  kPortable,  ///< what the compiler targets by default: SSE2 on x86-64, NEON on AArch64
  kAvx2,      ///< AVX2 and FMA
  kAvx512,    ///< AVX-512 F, BW, DQ, VL
  kAmx,       ///< AMX tiles and products of bfloat16, AVX-512's conversions to it
};

/// The best level that this build has and this processor runs.
CpuIsa best_cpu_isa();

/// Whether products of bfloat16 outrun those of float32: in AMX's tiles, and by AVX512_BF16 on
/// AMD's processors. Intel's does half as many operations in a second as float32 does, and where
/// there is neither, LibTorch computes bfloat16 in steps of float32. Outside x86-64 true: LibTorch
/// decides.
bool has_fast_bfloat16();

/// "portable", "avx2", "avx512", "amx".
std::string cpu_isa_name(CpuIsa isa);

}  // namespace vgen::kernels
