#!/usr/bin/env bash
# The three passes in a row: bash train_all.sh levir|dsifn|s2looking
# 1.pth, 2.pth and best.pth land in save_path. After an interruption, run it again: it goes on.
# epoch1, epoch2 and epoch3 set the epochs of one pass.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

refuse_behind "$@"
dataset="${1:?levir, dsifn or s2looking}"
shift
unset best_name
log_environment python nproc epoch1 epoch2 epoch3 "${train_options[@]}"
export save_path="${save_path:-$repo/results/$dataset/train}"

# run_pass NAME SCRIPT EPOCHS START [ARGUMENT...]: one pass, or the rest of an interrupted one.
# If EPOCHS or START is empty, the script has its own.
run_pass() {
  (
    export best_name="$1"
    script="$here/$2_$dataset.sh"
    if [ -n "$3" ]; then
      export epoch="$3"
    fi
    if [ -f "$save_path/$best_name.state.pth" ]; then
      export continue_run="$save_path"
    elif [ -n "$4" ]; then
      export checkpoint_path="$4"
    fi
    shift 4
    exec bash "$script" "$@"
  )
}

run_pass 1 train "${epoch1:-}" "" "$@"

# Only pass 1 starts from an encoder; the others start from the pass before.
unset pretrained checkpoint_path
run_pass 2 train_refine "${epoch2:-}" "$save_path/1.pth" "$@"

export cross=True
run_pass best train_refine "${epoch3:-}" "$save_path/2.pth" "$@"
