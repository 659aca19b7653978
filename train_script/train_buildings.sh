#!/usr/bin/env bash
# Buildings that appear or vanish, on levir, ms_bcd and more scenes, put together in root, from weights of synthetic scenes:
# packed.pth in save_path, how checkpoints/buildings_r18.pth was made. On one core: two hours.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"; data="$here/../data" start="$here/../checkpoints/prx_change_r18.pth"
[ -n "${python:-}" ] || python="$(cd "$here/.." && python3 -m change.common.environment requirements.txt)"
: "${root:=$data/buildings}" "${levir:=$data/LEVIR-CD}" "${ms_bcd:=$data/MS-HS-BCD}" "${save_path:=$here/../results/buildings/train}"
: "${epoch:=16}" "${val_epoch:=4}" "${count:=240}" "${train_batchsize:=4}" "${lr:=7e-4}"
. "$here/buildings_data.sh"
. "$here/from_weights.sh"
