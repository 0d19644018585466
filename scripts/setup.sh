#!/usr/bin/env bash
# Installs what vgen needs on Debian 12 and is missing: system packages (as root or through sudo),
# and LibTorch from its PyPI wheel in the project's own environment .venv. Does nothing, quickly,
# when all is there. Usage: scripts/setup.sh [--quiet]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch_version=2.11.0
packages=(g++ cmake ninja-build ccache git python3 python3-venv ca-certificates
  libopencv-core-dev libopencv-imgproc-dev libopencv-imgcodecs-dev libjpeg62-turbo-dev libpng-dev
  libyaml-cpp-dev libspdlog-dev libcli11-dev catch2 nlohmann-json3-dev libarchive-dev zlib1g-dev
  libdeflate-dev libgloo-dev)

say() { [ "${1-}" ] && echo "setup: $*"; }
fail() { echo "setup: error: $*" >&2; exit 1; }

free_gib() { df -Pk "$1" | awk 'NR == 2 {printf "%d", $4 / 1048576}'; }

# --- system packages ---
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
    missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null ||
    fail "this is no Debian system; install the counterparts of: ${missing[*]}"
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null ||
      fail "system packages are missing and you are not root; run: sudo apt-get install ${missing[*]}"
    as_root=(sudo -n)
  fi
  [ "$(free_gib /usr)" -ge 2 ] || fail "under 2 GiB free at /usr: make room for system packages"
  say "installing ${missing[*]}"
  log=$(mktemp)
  "${as_root[@]}" apt-get update -q >"$log" 2>&1 ||
    { tail -n 5 "$log" >&2; fail "apt-get update failed: is Debian's package registry reachable?"; }
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends "${missing[@]}" >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; fail "apt-get install failed (full log: $log)"; }
  rm -f "$log"
fi

# --- LibTorch ---
# The stamp is written last: an interrupted installation is done again.
stamp=.venv/vgen-torch-$torch_version
if [ ! -e "$stamp" ]; then
  [ "$(free_gib .)" -ge 8 ] ||
    fail "$(free_gib .) GiB free at $PWD: LibTorch with its CUDA libraries needs 5, the build 3"
  python=$(command -v /usr/bin/python3 || command -v python3) || fail "no python3"
  say "installing LibTorch $torch_version into .venv (530 MB to download, 5 GB on disk)"
  "$python" -m venv .venv || fail "python3 -m venv failed"
  log=$(mktemp)
  .venv/bin/python -m pip install -q --disable-pip-version-check "torch==$torch_version" numpy \
    >"$log" 2>&1 ||
    { tail -n 5 "$log" >&2; fail "pip could not install torch==$torch_version: is PyPI reachable?"; }
  rm -f "$log"
  touch "$stamp"
fi
[ "${1-}" = --quiet ] || say "all there: system packages, LibTorch $torch_version"
