#!/usr/bin/env bash
# Pass 1 (base) on LEVIR-CD, from ImageNet weights: gives 1.pth in save_path.
# Any option of train.py can be set before the command (epoch=10 bash train_levir.sh) or behind it (--epoch 10).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
: "${root:=$here/../data/LEVIR-CD}" "${save_path:=$here/../results/levir/train}"
: "${trainsize:=1024}" "${cropsize:=512}" "${train_batchsize:=8}" "${color_setting:=0.2 0.2 0.1 0.1}"
: "${epoch:=1000}" "${lr:=6e-4}" "${val_epoch:=1}"
program=train
. "$here/run.sh"
