#!/usr/bin/env bash
# Fine-tune a checkpoint on your own labelled pairs: data=FOLDER bash finetune.sh, FOLDER with train and val, each of A, B
# and label (20 pairs of 256 or more are enough to begin with): best.pth in save_path. On two cores: ten minutes.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
: "${data:?the folder of your pairs: data=FOLDER bash finetune.sh}" "${root:=$data}" "${save_path:=$here/../results/finetuned}"
: "${checkpoint_path:=$here/../checkpoints/prx_change_r18.pth}" "${recipe:=scratch}" "${lr:=2e-4}" "${pseudo:=0}" "${scale:=0.75 1.5}"
: "${trainsize:=0}" "${cropsize:=256}" "${epoch:=60}" "${val_epoch:=20}" "${val_batchsize:=1}" "${resume:=True}" "${cross:=True}"
: "${refine:=True}" "${best_name:=best}"
program=train
. "$here/run.sh"
