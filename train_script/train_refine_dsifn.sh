#!/usr/bin/env bash
# Pass 2 (refine) on DSIFN-CD, from pass 1's checkpoint_path: gives 2.pth in save_path.
# Pass 3: checkpoint_path=2.pth cross=True bash train_refine_dsifn.sh gives best.pth.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
case "${cross:=False}" in [Tt]rue|1|yes|on) from=2 ;; *) from=1 ;; esac
: "${epoch:=800}" "${lr:=4e-4}" "${val_epoch:=1}" "${refine:=True}" "${resume:=True}"
: "${checkpoint_path:=${save_path:-$here/../results/dsifn/train}/$from.pth}"
. "$here/train_dsifn.sh"
