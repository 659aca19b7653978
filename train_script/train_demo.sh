#!/usr/bin/env bash
# Train the three passes on synthetic scenes, from random weights, on any machine. The scenes are
# drawn once, to data/synthetic. The results are 1.pth, 2.pth, best.pth and packed.pth in
# results/demo/train. This script made checkpoints/prx_change_r18.pth.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

refuse_arguments "$@"
unset best_name
log_environment python nproc count epoch1 epoch2 epoch3 "${train_options[@]}"

: "${count:=400}"
export root="${root:-$repo/data/synthetic}"
export save_path="${save_path:-$repo/results/demo/train}"
export pretrained="${pretrained:-none}"
export trainsize="${trainsize:-0}"
export cropsize="${cropsize:-128}"
export eps="${eps:-1e-8}"
export val_epoch="${val_epoch:-20}"
export epoch1="${epoch1:-55}"
export epoch2="${epoch2:-14}"
export epoch3="${epoch3:-26}"

find_python
export python
if [ ! -d "$root/train" ]; then
  run_module change samples "$root/train" --count "$count" --size 512 --seed 1
fi
if [ ! -d "$root/val" ]; then
  run_module change samples "$root/val" --count 40 --size 512 --seed 2
fi
run_and_wait TERM exec bash "$here/train_all.sh" levir "$@"
rm -f "$save_path/packed.pth"
run_module change pack "$save_path/best.pth" "$save_path/packed.pth"
