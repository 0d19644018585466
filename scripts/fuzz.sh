#!/usr/bin/env bash
# Builds and runs the fuzz targets one after the other, starting from the golden files.
# Usage: scripts/fuzz.sh [SECONDS_EACH [TARGET...]]; the default is 60 seconds of every target.
# Needs clang 14 (Debian: clang-14). Inputs that crash are left in build/fuzz/crashes/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(safetensors index pickle torch npy yaml)
command -v clang++-14 >/dev/null ||
  { echo "fuzz: error: no clang++-14; install it with: apt-get install clang-14" >&2; exit 1; }

cmake --preset fuzz >/dev/null
cmake --build build/fuzz --parallel "${JOBS:-2}" --target "${targets[@]/#/fuzz_}"

# seed TARGET FILE...: copies seeds, named by folder and file.
corpus=build/fuzz/corpus
seed() {
  local target=$1 file
  shift
  mkdir -p "$corpus/$target"
  for file in "$@"; do
    [ -s "$file" ] && cp "$file" "$corpus/$target/$(basename "$(dirname "$file")")-${file##*/}"
  done
  return 0
}
for target in "${targets[@]}"; do
  mapfile -t files < <(find tests/fuzz/seeds/"$target" tests/fuzz/regressions/"$target" -type f \
    2>/dev/null)
  seed "$target" "${files[@]}"
done
seed torch tests/golden/torch-save/{valid,hostile}/*.pt
mapfile -t files < <(find tests/golden -size -16k \( -name '*.npy' -o -name '*.npz' \))
seed npy "${files[@]}"
mapfile -t files < <(find configs -name '*.yaml' 2>/dev/null)
seed yaml "${files[@]}"
mkdir -p "$corpus/pickle" build/fuzz/crashes
python3 - "$corpus/pickle" tests/golden/torch-save/*/*.pt <<'PYTHON'
import pathlib, sys, zipfile
for path in map(pathlib.Path, sys.argv[2:]):
    out = pathlib.Path(sys.argv[1], path.name)
    if path.name.startswith("legacy"):
        out.write_bytes(path.read_bytes()[15:])  # the pickles after the magic number
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not name.endswith("/data.pkl"):
                    continue
                with archive.open(name) as record:
                    record._expected_crc = None  # some are damaged on purpose
                    try:
                        out.write_bytes(record.read())
                    except (EOFError, OSError, zipfile.BadZipFile):
                        pass
PYTHON

for target in "${targets[@]}"; do
  echo "fuzz: $target, $seconds s"
  options=(-max_total_time="$seconds" -rss_limit_mb=2048 -timeout=30 -print_final_stats=1
    -max_len=8192 -artifact_prefix=build/fuzz/crashes/"$target"-)
  nice build/fuzz/tests/fuzz/fuzz_"$target" "${options[@]}" "$corpus/$target" \
    >"build/fuzz/$target.log" 2>&1 ||
    { tail -n 30 "build/fuzz/$target.log" >&2
      echo "fuzz: error: $target found an input that fails, see build/fuzz/crashes/" >&2; exit 1; }
  grep -E 'stat::(number_of_executed_units|peak_rss_mb)' "build/fuzz/$target.log"
  grep -oE 'cov: [0-9]+ ft: [0-9]+ corp: [0-9]+' "build/fuzz/$target.log" | tail -n 1
done
echo "fuzz: no input failed"
