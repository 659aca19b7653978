#!/usr/bin/env bash
# Fine-tune a checkpoint on your own labelled pairs: data=FOLDER bash finetune.sh, FOLDER with train and val, each of A, B
# and label (20 pairs of 256 or more are enough to begin with): best.pth in save_path. On two cores: ten minutes.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ -n "${data:-}" ] || { echo "error: which pairs? data=FOLDER bash finetune.sh" >&2; exit 2; }
root="$data" best_name=best; : "${save_path:=$here/../results/finetuned/$(basename "$data")}"
: "${checkpoint_path:=$here/../checkpoints/buildings_r18.pth}" "${recipe:=scratch}" "${lr:=2e-4}" "${pseudo:=0}" "${scale:=0.75 1.5}"
: "${trainsize:=0}" "${cropsize:=256}" "${epoch:=60}" "${val_epoch:=20}" "${val_batchsize:=1}" "${resume:=True}" "${cross:=True}"
: "${refine:=True}"; [ ! -f "$save_path/best.state.pth" ] || set -- "$@" --continue_run "$save_path"
program=train
. "$here/run.sh"
