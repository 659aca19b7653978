#!/usr/bin/env bash
# Train pass 1 (base) on DSIFN-CD from ImageNet weights. The result is 1.pth in save_path.
# Any option of train.py can be set before the command (epoch=10 bash train_dsifn.sh) or after it
# (bash train_dsifn.sh --epoch 10).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

: "${root:=$repo/data/DSIFN-CD}"
: "${save_path:=$repo/results/dsifn/train}"
: "${trainsize:=256}"
: "${cropsize:=256}"
: "${train_batchsize:=16}"
: "${color_setting:=0 0 0 0}"
: "${epoch:=1000}"
: "${lr:=8e-4}"
: "${val_epoch:=1}"

run_program train "$@"
