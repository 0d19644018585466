#include "vgen/kernels/cpu_isa.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vgen::kernels {

namespace {

// Tiles of bfloat16, AVX-512's conversions to it, and the system's permission: it saves the 8 KiB
// of a thread's tiles only for processes that asked.
bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAvx512Bf16 = 1u << 5;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h
  // Clang has no names for these in __builtin_cpu_supports.
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || (a & kAvx512Bf16) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

CpuIsa best_cpu_isa() {
#if defined(__x86_64__)
  // The compiler's runtime also asks the operating system whether it saves the registers.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    static const bool has_tiles = may_use_tiles();
    return has_tiles ? CpuIsa::kAmx : CpuIsa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return CpuIsa::kAvx2;
#endif
  return CpuIsa::kPortable;
}

bool has_fast_bfloat16() {
#if defined(__x86_64__)
  return best_cpu_isa() >= CpuIsa::kAmx ||
         (__builtin_cpu_is("amd") && __builtin_cpu_supports("avx512bf16"));
#else
  return true;
#endif
}

std::string cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAmx:
      return "amx";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kPortable:
      break;
  }
  return "portable";
}

}  // namespace vgen::kernels
