#!/usr/bin/env bash
# Test on DSIFN-CD, and write scores, masks and error maps to results/dsifn.
# checkpoint_path names the weights, by default the published ones. Any option of test.py can be set
# before the command or after it: testsize=512 bash test_dsifn.sh --save_panels
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=../train_script/run.sh
. "$here/../train_script/run.sh"

: "${test_root:=$repo/data/DSIFN-CD/test}"
: "${save_path:=$repo/results/dsifn}"
: "${checkpoint_path:=$repo/checkpoints/dsifncd_best_f1_9644.pth}"
: "${save_result:=True}"
: "${save_iou_map:=True}"

run_program test "$@"
