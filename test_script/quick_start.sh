#!/usr/bin/env bash
# Masks, error maps, panels and scores of the synthetic test_samples, in results/qs; sets up what is missing, see README.
# Your own pairs: test_root=FOLDER bash quick_start.sh, FOLDER with A, B and, for scores, label.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
: "${test_root:=$here/../test_samples}" "${save_path:=$here/../results/qs}"
: "${checkpoint_path:=$here/../checkpoints/buildings_r18.pth}"
: "${save_result:=True}" "${save_panels:=True}"
[ ! -d "$test_root/label" ] || : "${save_iou_map:=True}"
program=test
. "$here/../train_script/run.sh"
