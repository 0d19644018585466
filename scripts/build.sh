#!/usr/bin/env bash
# Sets up, configures and builds. Usage: scripts/build.sh [PRESET [TARGET...]]; the default preset
# is `release`, the default target everything. JOBS=N limits parallel compilers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=${1:-release}
shift || true
scripts/setup.sh --quiet

# A compiler needs up to 1.5 GiB with LibTorch's headers.
cores=$(nproc)
by_memory=$(awk '/MemAvailable/ {printf "%d", $2 / 1572864}' /proc/meminfo)
jobs=${JOBS:-$((by_memory < 1 ? 1 : by_memory < cores ? by_memory : cores))}

options=()
[ "${CI-}" = true ] && options+=(-DVGEN_WERROR=ON)
cmake --preset "$preset" "${options[@]}" >"build-$preset.log" 2>&1 ||
  { cat "build-$preset.log" >&2; echo "build: error: configuring failed" >&2; exit 1; }
grep -- '-- vgen:' "build-$preset.log" || true
rm -f "build-$preset.log"
cmake --build "build/$preset" --parallel "$jobs" ${1:+--target "$@"}
