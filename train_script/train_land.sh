#!/usr/bin/env bash
# Any change of cropland and land cover, from CLCD (root, as prepare leaves it) and random weights: packed.pth in save_path
# is checkpoints/land_r18.pth. On two cores: six hours.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ -n "${python:-}" ] || python="$(cd "$here/.." && python3 -m change.environment requirements.txt)"
: "${root:=$here/../data/CLCD}" "${save_path:=$here/../results/land/train}" "${train_batchsize:=8}"
: "${epoch1:=168}" "${epoch2:=24}" "${val_epoch:=24}"
. "$here/two_passes.sh"
