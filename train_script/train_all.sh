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

# run_pass NAME SCRIPT EPOCHS [ARGUMENT...]: one pass, or the rest of one that was interrupted.
# Without EPOCHS, the script's own number of epochs.
run_pass() {
  (
    export best_name="$1"
    script="$here/$2_$dataset.sh"
    if [ -n "$3" ]; then
      export epoch="$3"
    fi
    shift 3
    if [ -f "$save_path/$best_name.state.pth" ]; then
      # The state holds the options of the pass: only what the user has set is given again.
      set -- --continue_run "$save_path" "$@"
      unset save_path checkpoint_path resume pretrained
      run_program train "$@"
    fi
    exec bash "$script" "$@"
  )
}

run_pass 1 train "${epoch1:-}" "$@"

unset pretrained  # only pass 1 starts from an encoder
export checkpoint_path="$save_path/1.pth"
run_pass 2 train_refine "${epoch2:-}" "$@"

export checkpoint_path="$save_path/2.pth"
export cross=True
run_pass best train_refine "${epoch3:-}" "$@"
