#!/usr/bin/env bash
# What each part is worth: a pass 1 a seed, of the network and of a U-Net, and from it every arm, for as many crops again,
# scored on val in out/ARM_SEED/test, for python -m change compare. Run again, it goes on; other settings need another out.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"; extra=("$@"); unset model refine cross within resume checkpoint_path continue_run; . "$here/in_front.sh"
[ -n "${python:-}" ] || python="$(cd "$here/.." && python3 -m change.common.environment requirements.txt)"
: "${root:=$here/../data/CLCD}" "${out:=$here/../results/ablation}" "${recipe:=scratch}" "${epoch:=56}" "${seeds:=0 1 2}" "${val_epoch:=9999}"
: "${cropsize:=128}" "${trainsize:=0}" "${val_batchsize:=1}" "${pretrained:=none}"; best_name=w
arm() { save_path="$out/$1_$seed"; [ ! -f "$save_path/test/metrics.json" ] || return 0
  [ -z "$2" ] || set -- "$@" --resume --checkpoint_path "$out/$2_$seed/w.pth"; shift 2
  [ ! -f "$save_path/w.state.pth" ] || set -- "$@" --continue_run "$save_path"; (program=train; . "$here/run.sh" "$@" ${extra[@]+"${extra[@]}"})
  "$python" "$here/../test.py" --test_root "$root/val" --checkpoint_path "$save_path/w.pth" --save_path "$save_path/test" --amp "${test_amp:-auto}" ${device:+--device "$device"}; }
for seed in $seeds; do arm unet1 "" --model unet; arm base1 ""; arm unet unet1 --model unet; arm base base1; arm refine base1 --refine
  arm cross base1 --cross; arm within base1 --cross --within; arm both base1 --refine --cross
  (epoch=$(((epoch + 1) / 2)); arm turn2 base1 --refine; arm turn3 turn2 --refine --cross); done
