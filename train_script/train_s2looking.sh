#!/usr/bin/env bash
# Train pass 1 (base) on S2Looking from ImageNet weights. The result is 1.pth in save_path.
# Any option of train.py can be set before the command (epoch=10 bash train_s2looking.sh) or after
# it (bash train_s2looking.sh --epoch 10).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

: "${root:=$repo/data/S2Looking}"
: "${save_path:=$repo/results/s2looking/train}"
: "${trainsize:=1024}"
: "${cropsize:=512}"
: "${train_batchsize:=8}"
: "${color_setting:=0.2 0.2 0.1 0.1}"
: "${epoch:=1000}"
: "${lr:=6e-4}"
: "${val_epoch:=10}"

run_program train "$@"
