#!/usr/bin/env bash
# The three passes in a row: bash train_all.sh levir|dsifn|s2looking. 1.pth, 2.pth and best.pth land in save_path.
# Run again after an interruption, it goes on where it stopped. epoch, lr, val_epoch hold for all passes;
# epoch1, epoch2, epoch3 for one.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
dataset="${1:?levir, dsifn or s2looking}"; shift
export save_path="${save_path:-$here/../results/$dataset/train}"
each() {  # name, script, epochs, further values
  [ -f "$save_path/$1.state.pth" ] && set -- "$@" "continue_run=$save_path"
  env best_name="$1" ${3:+epoch="$3"} "${@:4}" bash "$here/$2_$dataset.sh" ${extra[@]+"${extra[@]}"}
}
extra=("$@")
each 1 train "${epoch1:-${epoch:-}}"
each 2 train_refine "${epoch2:-${epoch:-}}" checkpoint_path="$save_path/1.pth"
each best train_refine "${epoch3:-${epoch:-}}" checkpoint_path="$save_path/2.pth" cross=True
