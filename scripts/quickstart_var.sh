#!/usr/bin/env bash
# The second kind of model: trains VAR's multi-scale tokenizer on the embedded digits, then VAR itself,
# draws digits of the class asked for, edits one, and measures both models.
# Usage: scripts/quickstart_var.sh [OUTPUT_FOLDER]; the default is runs/quickstart. Running it again
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

step "1 of 4: a tokenizer learns to write a digit as six scales of codes"
"$vgen" train configs/quickstart/var-tokenizer-digits.yaml --run-dir "$out/var-tokenizer" --resume auto
"$vgen" reconstruct "$out/var-tokenizer" $digits --split val --out "$out/var-reconstructions" --force

step "2 of 4: VAR learns the codes, scale after scale"
"$vgen" train configs/quickstart/var-digits.yaml --run-dir "$out/var" --resume auto \
  --set tokenizer.path="$out/var-tokenizer"

step "3 of 4: digits of the class asked for"
draw() { # FOLDER IMAGES_PER_CLASS SEED
  "$vgen" sample "$out/var" --tokenizer "$out/var-tokenizer" --class-id 0-9 --count "$2" \
    --seed "$3" --cfg-scale 1.5 --top-k 0 --top-p 0.9 --precision fp32 --batch-size 50 \
    --out "$out/$1" --force "${@:4}"
}
draw var-samples 10 0 --show-scales
draw var-samples-1000 100 1
mkdir -p "$out/var-edit"
tar -xzf $digits -C "$out/var-edit" val/2/1289.png
"$vgen" edit "$out/var" --tokenizer "$out/var-tokenizer" --image "$out/var-edit/val/2/1289.png" \
  --box 0.5,0,1,1 --class-id 8 --cfg-scale 3 --top-k 0 --top-p 0.9 --precision fp32 --keep-original \
  --out "$out/var-edited" --force

step "4 of 4: are they digits of that class?"
"$vgen" evaluate consistency "$out/var-samples-1000" $digits --out "$out/var-consistency.json" --force

cat <<END

Done:
  tokenizer             $out/var-tokenizer  (curves: tensorboard --logdir $out)
  its scales            $out/var-reconstructions/scales.png  (coarse to fine, then the original)
  VAR                   $out/var  (pictures of its training: $out/var/samples/)
  generated digits      $out/var-samples/grid.png  (a row per class, 0 to 9)
  an edited digit       $out/var-edited/grid.png  (the lower half of a 2 becomes an 8's)
  class consistency     $out/var-consistency.json
END
