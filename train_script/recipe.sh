#!/usr/bin/env bash
# What the steps of the recipe gain, on folds inside train (lists: of python -m change folds): optimizer over published,
# average over that, each of the others over average; all: --recipe scratch. Scores in out/STEP_FOLD/test, for python -m change
# compare A_0/test+A_1/test+A_2/test B_0/test+... No step sees val. Run again, it goes on; other settings need another out.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"; extra=("$@") base=(); unset resume checkpoint_path continue_run; . "$here/in_front.sh"
[ -n "${python:-}" ] || python="$(cd "$here/.." && python3 -m change.common.environment requirements.txt)"
: "${root:=$here/../data/CLCD}" "${lists:=$here/../list/CLCD-folds}" "${out:=$here/../results/recipe}" "${epoch:=14}" "${cropsize:=128}" "${folds:=0 1 2}" "${val_epoch:=9999}" "${trainsize:=0}" "${val_batchsize:=1}" "${pretrained:=none}"; root="$root/train" best_name=w
more() { case "$1" in optimizer) echo --lr 1e-3 --eps 1e-8 --weight_decay 0.05 --no-decay_norms --schedule cosine --warmup 2 ;;
  average) echo --ema 0.999 --keep last ;; symmetries) echo --symmetries ;; swap) echo --swap ;; loss) echo --dice 1 --prior ;; esac; }
for step in published optimizer average symmetries swap scale colour loss all; do options=(${base[@]+"${base[@]}"} $(more $step)) scale="" color_setting="" recipe=published
  case $step in published | optimizer | average) base=(${options[@]+"${options[@]}"}) ;; scale) scale="0.8 1.25" ;; colour) color_setting="0.3 0.3 0.3 0.05" ;; all) options=() recipe=scratch ;; esac
  for fold in $folds; do save_path="$out/${step}_$fold" list="$lists/$fold"; [ ! -f "$save_path/test/metrics.json" ] || continue; set -- ${options[@]+"${options[@]}"}
    [ ! -f "$save_path/w.state.pth" ] || set -- "$@" --continue_run "$save_path"; (program=train; . "$here/run.sh" "$@" ${extra[@]+"${extra[@]}"})
    "$python" "$here/../test.py" --test_root "$root" --list "$list/val.txt" --checkpoint_path "$save_path/w.pth" --save_path "$save_path/test" --amp "${test_amp:-auto}" ${device:+--device "$device"}; done; done
