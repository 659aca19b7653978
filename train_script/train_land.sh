#!/usr/bin/env bash
# Any change of cropland and land cover, from random weights, on CLCD (root, as prepare leaves it): packed.pth in save_path.
# On two cores: eight hours.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ -n "${python:-}" ] || python="$(cd "$here/.." && python3 -m change.environment requirements.txt)"
: "${root:=$here/../data/CLCD}" "${save_path:=$here/../results/land/train}" "${train_batchsize:=8}"
: "${epoch1:=168}" "${epoch2:=24}" "${val_epoch:=24}"
. "$here/two_passes.sh"
