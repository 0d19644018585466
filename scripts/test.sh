#!/usr/bin/env bash
# Sets up, builds and runs every test through CTest. Usage: scripts/test.sh [PRESET [CTEST ARGS...]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=${1:-release}
shift || true
scripts/build.sh "$preset"
ctest --preset "$preset" "$@"
