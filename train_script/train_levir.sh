#!/usr/bin/env bash
# Train pass 1 (base) on LEVIR-CD from ImageNet weights. The result is 1.pth in save_path.
# Any option of train.py can be set before the command (epoch=10 bash train_levir.sh) or after it
# (bash train_levir.sh --epoch 10).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

: "${root:=$repo/data/LEVIR-CD}"
: "${save_path:=$repo/results/levir/train}"
: "${trainsize:=1024}"
: "${cropsize:=512}"
: "${train_batchsize:=8}"
: "${color_setting:=0.2 0.2 0.1 0.1}"
: "${epoch:=1000}"
: "${lr:=6e-4}"
: "${val_epoch:=1}"

run_program train "$@"
