#!/usr/bin/env bash
# Train the three passes one after the other: bash train_all.sh levir|dsifn|s2looking
# The results are 1.pth, 2.pth and best.pth in save_path. After an interruption, run it again to
# continue. epoch1, epoch2 and epoch3 set the number of epochs of each pass.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

refuse_arguments "$@"
dataset="${1:-}"
if [ ! -f "$here/train_refine_$dataset.sh" ]; then
  echo "error: name a data set: bash train_all.sh levir|dsifn|s2looking" >&2
  exit 2
fi
shift
unset best_name
log_environment python nproc epoch1 epoch2 epoch3 "${train_options[@]}"
export save_path="${save_path:-$repo/results/$dataset/train}"

# Setting up an environment can take minutes. It is done here, because a pass cannot be
# stopped meanwhile.
find_python
export python

# run_pass NAME SCRIPT EPOCHS START [ARGUMENT...]: replace this process by a pass, or by the rest of
# an interrupted one. If EPOCHS or START is empty, the value in the script is used.
run_pass() {
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
}

run_and_wait INT run_pass 1 train "${epoch1:-}" "" "$@"

# Only pass 1 starts from a pretrained encoder. Every other pass starts from the previous one.
unset pretrained checkpoint_path
run_and_wait INT run_pass 2 train_refine "${epoch2:-}" "$save_path/1.pth" "$@"

export cross=True
run_and_wait INT run_pass best train_refine "${epoch3:-}" "$save_path/2.pth" "$@"
