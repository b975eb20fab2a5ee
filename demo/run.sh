#!/usr/bin/env bash
# From real images and real pretrained weights to a verified model, with every verb on the way. Works offline.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
place=${1:-build/demo}
rm -rf "$place"
mkdir -p "$place"
cd "$place"

step() { printf '\n$ %s\n' "$*"; "$@"; }

python "$here/digits.py" photos test
step tlkit advise photos/ --audit
step tlkit train photos/ -o run/ --size 96  # a trial decides whether to fine-tune; the pictures have 64 pixels
step tlkit train photos/ -o run-svm/ --size 96 --strategy frozen --head svm --set head.pca=128  # decodes no image again
step tlkit export run/ --onnx
step tlkit export run/ --onnx --precision int8 --max-drop 0.5
step tlkit verify run/
step tlkit predict run/onnx/fp32/model.onnx photos/0/0000.png photos/7/ --topk 2 | head -5
step tlkit embed run/ photos/ test/ -o features.parquet
step tlkit search features.parquet test/3/0059.png -k 3 --model run/
step tlkit eval run/ test/  # images that were not trained on
step tlkit report run/ test/ -o report.html
step tlkit look run/ test/3/0059.png -o look.html
step tlkit suggest run/ test/ -n 20 -o label-next.csv  # as if they had no labels
step tlkit bench run/ --batch-size 1 --batch-size 8
step tlkit inspect run/
step tlkit plugins
step tlkit doctor
