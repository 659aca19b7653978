#!/usr/bin/env bash
# Buildings that appear or vanish, from random weights: levir and ms_bcd (folders of train and val) and synthetic scenes,
# put together in root. packed.pth in save_path is checkpoints/buildings_r18.pth. On two cores: six hours.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"; data="$here/../data"
[ -n "${python:-}" ] || python="$(cd "$here/.." && python3 -m change.environment requirements.txt)"
: "${root:=$data/buildings}" "${levir:=$data/LEVIR-CD}" "${ms_bcd:=$data/MS-HS-BCD}" "${save_path:=$here/../results/buildings/train}"
: "${train_batchsize:=8}" "${epoch1:=54}" "${epoch2:=8}" "${val_epoch:=9}" "${count:=300}" "${aside:=$root.part}"
copy() { mkdir -p "$aside/$3"; for kind in A B label; do mkdir -p "$aside/$3/$kind"
  for file in "$1/$kind"/*; do cp "$file" "$aside/$3/$kind/$2_${file##*/}"; done; done; }
[ -d "$root" ] || { export PYTHONPATH="$here/.."; rm -rf "$aside"; "$python" -m change prepare levir "$levir" "$aside/tiles" \
  --before A --after B --label label --tile 512 --overlap 256 --list_path "$aside/list"
  "$python" -m change samples "$aside/scenes" --count "$count" --size 512 --seed 1; copy "$aside/tiles/train" levir train
  copy "$aside/scenes" scene train; copy "$levir/val" levir val; for s in train val; do copy "$ms_bcd/$s" ms $s; done; mv "$aside" "$root"; }
. "$here/two_passes.sh"
