#!/usr/bin/env bash
# Write scores, masks, error maps, panels and a report of the synthetic test_samples to results/qs.
# For your own pairs: test_root=FOLDER bash quick_start.sh. FOLDER has A, B and, for scores, label.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=../train_script/run.sh
. "$here/../train_script/run.sh"

: "${test_root:=$repo/test_samples}"
: "${save_path:=$repo/results/qs}"
: "${checkpoint_path:=$repo/checkpoints/buildings_r18.pth}"
: "${save_result:=True}"
: "${save_panels:=True}"
: "${report:=True}"
if [ -d "$test_root/label" ]; then
  : "${save_iou_map:=True}"
fi

if [ "$checkpoint_path" = "$repo/checkpoints/buildings_r18.pth" ]; then
  echo "The network is PRX-Change with ResNet-18, checkpoints/buildings_r18.pth. The smaller"
  echo "checkpoints/buildings.pth scores higher on real images: see docs/models/buildings.md."
fi

run_program test "$@"
