#!/usr/bin/env bash
# Fine-tune a checkpoint on your own labelled pairs: data=FOLDER bash finetune.sh, FOLDER with train and val, each of A, B
# and label (20 pairs of 256 or more are enough to begin with): best.pth in save_path. Sees 2,400 crops, or a crop of every pair.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ -n "${data:-}" ] || { echo "error: which pairs? data=FOLDER bash finetune.sh" >&2; exit 2; }
files=("$data"/train/A/*)
root="$data" best_name=best; : "${save_path:=$here/../results/finetuned/$(basename "$data")}" "${epoch:=$((2400 / ${#files[@]} + 1))}"
: "${checkpoint_path:=$here/../checkpoints/buildings_r18.pth}" "${recipe:=scratch}" "${lr:=2e-4}" "${pseudo:=0}" "${scale:=0.75 1.5}"
: "${trainsize:=0}" "${cropsize:=256}" "${train_batchsize:=4}" "${val_epoch:=$((epoch / 3 + 1))}" "${val_batchsize:=1}"
: "${resume:=True}" "${cross:=True}" "${refine:=True}"; [ ! -f "$save_path/best.state.pth" ] || set -- "$@" --continue_run "$save_path"
program=train
. "$here/run.sh"
