#!/usr/bin/env bash
# Test on LEVIR-CD, and write scores, masks and error maps to results/levir.
# checkpoint_path names the weights, by default the published ones. Any option of test.py can be set
# before the command or after it: testsize=512 bash test_levir.sh --save_panels
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=../train_script/run.sh
. "$here/../train_script/run.sh"

: "${test_root:=$repo/data/LEVIR-CD/test}"
: "${save_path:=$repo/results/levir}"
: "${checkpoint_path:=$repo/checkpoints/levircd_best_f1_9214.pth}"
: "${save_result:=True}"
: "${save_iou_map:=True}"

run_program test "$@"
