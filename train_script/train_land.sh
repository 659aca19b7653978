#!/usr/bin/env bash
# Any change of cropland and land cover, on CLCD (root, as prepare leaves it), from the weights of synthetic scenes:
# packed.pth in save_path. On one core: two hours.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ -n "${python:-}" ] || python="$(cd "$here/.." && python3 -m change.environment requirements.txt)"
: "${root:=$here/../data/CLCD}" "${save_path:=$here/../results/land/train}" "${epoch:=72}" "${val_epoch:=18}"
. "$here/from_scenes.sh"
