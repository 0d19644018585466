#!/usr/bin/env bash
# Builds and runs the tests of core, io and data under sanitizers.
# Usage: scripts/sanitize.sh [asan|tsan|all] [TEST...]; the default is asan and core io data; tsan runs
# the loader's and the worker threads' tests of data. JOBS=N limits parallel compilers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mode=${1:-asan}
shift || true
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(core io data)

build() {
  cmake --preset "$1" -DVGEN_APPS=OFF >/dev/null
  cmake --build "build/$1" --parallel "${JOBS:-2}" --target "${@:2}"
}

run_asan() {
  build asan "${tests[@]/#/test_}"
  export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
  export UBSAN_OPTIONS=print_stacktrace=1
  local test
  for test in "${tests[@]}"; do
    echo "sanitize: asan, $test"
    "build/asan/tests/test_$test" "~[slow]"
  done
}

run_tsan() {
  build tsan test_data
  export TSAN_OPTIONS=suppressions=$PWD/scripts/sanitize/tsan.supp:halt_on_error=1
  echo "sanitize: tsan, data: loader and worker threads"
  build/tsan/tests/test_data "loader: *,in order: *,verify: *,synth: folder*"
}

case $mode in
  asan) run_asan ;;
  tsan) run_tsan ;;
  all)  # not joined by &&, which would let failures inside pass
    run_asan
    run_tsan
    ;;
  *) echo "sanitize: error: '$mode': expected asan, tsan or all" >&2; exit 2 ;;
esac
echo "sanitize: clean"
