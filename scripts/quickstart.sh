#!/usr/bin/env bash
# From a fresh clone to generated images: sets up, builds, trains an image tokenizer on the embedded
# digits, turns the digits into codes, trains a GPT on them, draws digits of the class asked for, and
# measures both models.
# Usage: scripts/quickstart.sh [OUTPUT_FOLDER]; the default is runs/quickstart. Running it again
# continues what was interrupted.
set -euo pipefail
trap 'exit 130' INT  # vgen train saves and exits with 0: stop here all the same
trap 'exit 143' TERM
out=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../runs/quickstart}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(realpath -m --relative-to=. "$out")
case $out in ../*) out=$(realpath -m "$out") ;; esac

scripts/build.sh release vgen
vgen=build/release/apps/vgen
digits=data/digits.tar.gz
step() { printf '\n== %s\n' "$1"; }

step "1 of 5: an image tokenizer learns to write a digit as 16 codes"
"$vgen" train configs/quickstart/tokenizer-digits.yaml --run-dir "$out/tokenizer" --resume auto
"$vgen" reconstruct "$out/tokenizer" $digits --split val --out "$out/reconstructions" --force

step "2 of 5: all digits become codes"
"$vgen" extract "$out/tokenizer" $digits --split train --crops center,five_crop:1.1 \
  --out "$out/codes/train" --verify 64
"$vgen" extract "$out/tokenizer" $digits --split val --out "$out/codes/val" --verify 64

step "3 of 5: a GPT learns the codes"
"$vgen" train configs/quickstart/gpt-digits.yaml --run-dir "$out/gpt" --resume auto \
  --set tokenizer.path="$out/tokenizer" --set data.train="$out/codes/train" \
  --set data.val="$out/codes/val"

step "4 of 5: digits of the class asked for"
draw() { # FOLDER IMAGES_PER_CLASS SEED
  "$vgen" sample "$out/gpt" --tokenizer "$out/tokenizer" --class-id 0-9 --count "$2" --seed "$3" \
    --cfg-scale 2 --top-k 0 --top-p 0.9 --precision fp32 --batch-size 50 --out "$out/$1" --force
}
draw samples 10 0
draw samples-1000 100 1
"$vgen" evaluate precision "$out/gpt" "$out/codes/val"

step "5 of 5: are they digits of that class?"
"$vgen" evaluate consistency "$out/samples-1000" $digits --out "$out/consistency.json" --force

cat <<END

The quickstart is done:
  tokenizer             $out/tokenizer  (curves: tensorboard --logdir $out)
  reconstructions       $out/reconstructions/grid.png  (each original beside its copy)
  their measures        $out/reconstructions/metrics.json
  GPT                   $out/gpt  (pictures of its training: $out/gpt/samples/)
  generated digits      $out/samples/grid.png  (a row per class, 0 to 9)
  class consistency     $out/consistency.json
END
