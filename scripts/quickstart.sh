#!/usr/bin/env bash
# From a fresh clone to a trained image tokenizer: sets up, builds, trains on the embedded digits,
# reconstructs digits it never saw, and prints where the results are.
# Usage: scripts/quickstart.sh [OUTPUT_FOLDER]; the default is runs/quickstart. Running it again
# continues an interrupted training.
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../runs/quickstart}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(realpath -m --relative-to=. "$out")
case $out in ../*) out=$(realpath -m "$out") ;; esac

scripts/build.sh release vgen
vgen=build/release/apps/vgen

"$vgen" train configs/quickstart/tokenizer-digits.yaml --run-dir "$out/tokenizer" --resume auto
"$vgen" reconstruct "$out/tokenizer" data/digits.tar.gz --split val --out "$out/reconstructions" \
  --force

echo
echo "The quickstart is done:"
echo "  tokenizer             $out/tokenizer  (curves: tensorboard --logdir $out/tokenizer)"
echo "  previews of training  $out/tokenizer/samples/"
echo "  reconstructions       $out/reconstructions/grid.png  (each original beside its copy)"
echo "  their measures        $out/reconstructions/metrics.json"
cat "$out/reconstructions/metrics.json"
