#!/usr/bin/env bash
# Fine-tune a checkpoint on your own labelled pairs: data=FOLDER bash finetune.sh, FOLDER with train and val, each of A, B
# and label (20 pairs of 256 or more are enough to begin with): best.pth in save_path. Sees 2,400 crops, in whole epochs.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"; names() { if [ -d "$data/train/A" ] && [ -z "${list:-}" ]; then
  ls "$data/train/A" | grep -iE '\.(png|jpe?g|tiff?|bmp)$'; else cat "${list:-$data/list}/train.txt" 2>/dev/null; fi; }
[ -n "${data:-}" ] || { echo "error: which pairs? data=FOLDER bash finetune.sh" >&2; exit 2; }
. "$here/in_front.sh"; root="$data" best_name=best; : "${save_path:=$here/../results/finetuned/$(basename "$(cd "$data" 2>/dev/null && pwd || echo "$data")")}"
: "${checkpoint_path:=$here/../checkpoints/buildings_r18.pth}" "${recipe:=scratch}" "${lr:=2e-4}" "${swap:=True}" "${scale:=0.75 1.5}"
: "${trainsize:=0}" "${cropsize:=256}" "${val_batchsize:=1}" "${resume:=True}" "${cross:=True}" "${refine:=True}"
[ "${nproc:-1}" != 1 ] || : "${train_batchsize:=4}"
if [ -f "$save_path/best.state.pth" ]; then set -- "$@" --continue_run "$save_path"
elif [ -z "${epoch:-}" ]; then pairs="$(names | grep -c . || true)" # of none, train.py says what is missing
  pairs="${pairs/#0/2400}" epoch="$(((2400 + pairs - 1) / pairs))"; : "${val_epoch:=$(((epoch + 2) / 3))}"; fi
program=train; . "$here/run.sh"
