#!/usr/bin/env bash
# Buildings that appear or vanish, on levir and ms_bcd, put together in root once, from the weights of synthetic scenes:
# packed.pth in save_path, how checkpoints/buildings_r18.pth was made. On two cores: an hour.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"; data="$here/../data"
[ -n "${python:-}" ] || python="$(cd "$here/.." && python3 -m change.environment requirements.txt)"
: "${root:=$data/buildings}" "${levir:=$data/LEVIR-CD}" "${ms_bcd:=$data/MS-HS-BCD}" "${save_path:=$here/../results/buildings/train}"
: "${epoch:=19}" "${val_epoch:=5}"
. "$here/buildings_data.sh"
. "$here/from_scenes.sh"
