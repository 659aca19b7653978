#!/usr/bin/env bash
# Test on DSIFN-CD: scores, masks and error maps in results/dsifn. checkpoint_path: the weights, ours or published.
# Any option of test.py can be set before the command or behind it, e.g. testsize=512 bash test_dsifn.sh --save_panels
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
: "${test_root:=$here/../data/DSIFN-CD/test}" "${save_path:=$here/../results/dsifn}"
: "${checkpoint_path:=$here/../checkpoints/dsifncd_best_f1_9644.pth}" "${save_result:=True}" "${save_iou_map:=True}"
program=test
. "$here/../train_script/run.sh"
