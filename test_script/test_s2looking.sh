#!/usr/bin/env bash
# Test on S2Looking, and write scores, masks and error maps to results/s2looking.
# checkpoint_path names the weights, by default the published ones. Any option of test.py can be set
# before the command or after it: testsize=512 bash test_s2looking.sh --save_panels
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=../train_script/run.sh
. "$here/../train_script/run.sh"

: "${test_root:=$repo/data/S2Looking/test}"
: "${save_path:=$repo/results/s2looking}"
: "${checkpoint_path:=$repo/checkpoints/s2looking_best_f1_6650.pth}"
: "${save_result:=True}"
: "${save_iou_map:=True}"

run_program test "$@"
