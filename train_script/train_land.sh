#!/usr/bin/env bash
# Any change of cropland and land cover, on CLCD (root, as prepare leaves it), from the weights for buildings: packed.pth
# in save_path, how checkpoints/land_r18.pth was made. On one core: two and a half hours.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"; start="$here/../checkpoints/buildings_r18.pth"
[ -n "${python:-}" ] || python="$(cd "$here/.." && python3 -m change.common.environment requirements.txt)"
: "${root:=$here/../data/CLCD}" "${save_path:=$here/../results/land/train}" "${epoch:=130}" "${val_epoch:=10}"
: "${train_batchsize:=8}" "${lr:=1e-3}"
. "$here/from_weights.sh"
