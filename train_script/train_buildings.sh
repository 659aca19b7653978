#!/usr/bin/env bash
# Buildings that appear or vanish, from random weights, on levir, ms_bcd and synthetic scenes, which are put together in
# root once: packed.pth in save_path. On two cores: eight hours.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"; data="$here/../data"
[ -n "${python:-}" ] || python="$(cd "$here/.." && python3 -m change.environment requirements.txt)"
: "${root:=$data/buildings}" "${levir:=$data/LEVIR-CD}" "${ms_bcd:=$data/MS-HS-BCD}" "${save_path:=$here/../results/buildings/train}"
: "${train_batchsize:=8}" "${epoch1:=54}" "${epoch2:=8}" "${val_epoch:=9}" "${count:=300}"
. "$here/buildings_data.sh"
. "$here/two_passes.sh"
