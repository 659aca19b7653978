#!/usr/bin/env bash
# The three passes in a row: bash train_all.sh levir|dsifn|s2looking. 1.pth, 2.pth and best.pth land in save_path.
# Run again after an interruption, it goes on where it stopped. epoch1, epoch2, epoch3: epochs of one pass.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
dataset="${1:?levir, dsifn or s2looking}"
. "$here/in_front.sh"
export save_path="${save_path:-$here/../results/$dataset/train}"
each() {  # name, script, epochs, further arguments
  go_on=(); [ ! -f "$save_path/$1.state.pth" ] || go_on=(--continue_run "$save_path")
  env best_name="$1" ${3:+epoch="$3"} bash "$here/$2_$dataset.sh" "${@:4}" ${go_on[@]+"${go_on[@]}"}
}
each 1 train "${epoch1:-}" "${@:2}"
checkpoint_path="$save_path/1.pth" each 2 train_refine "${epoch2:-}" "${@:2}"
checkpoint_path="$save_path/2.pth" cross=True each best train_refine "${epoch3:-}" "${@:2}"
