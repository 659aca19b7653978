#!/usr/bin/env bash
# Pass 1 (base) on DSIFN-CD, from ImageNet weights: gives 1.pth in save_path.
# Any option of train.py can be set before the command (epoch=10 bash train_dsifn.sh) or behind it (--epoch 10).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
: "${root:=$here/../data/DSIFN-CD}" "${save_path:=$here/../results/dsifn/train}"
: "${trainsize:=256}" "${cropsize:=256}" "${train_batchsize:=16}" "${color_setting:=0 0 0 0}"
: "${epoch:=1000}" "${lr:=8e-4}" "${val_epoch:=1}"
program=train
. "$here/run.sh"
