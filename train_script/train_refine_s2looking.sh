#!/usr/bin/env bash
# Pass 2 (refine) on S2Looking from the weights of pass 1: writes 2.pth to save_path.
# Pass 3 (refine + cross) from those of pass 2, best.pth: cross=True bash train_refine_s2looking.sh
# checkpoint_path names other weights to start from.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

: "${save_path:=$repo/results/s2looking/train}"
: "${refine:=True}"
: "${cross:=False}"
: "${resume:=True}"
: "${epoch:=500}"
: "${lr:=4e-4}"
: "${val_epoch:=1}"

case "$cross" in
  [Tt]rue | 1 | yes | on)
    : "${checkpoint_path:=$save_path/2.pth}"
    ;;
  *)
    : "${checkpoint_path:=$save_path/1.pth}"
    ;;
esac

# The data and the other values are those of pass 1.
# shellcheck source-path=SCRIPTDIR source=train_s2looking.sh
. "$here/train_s2looking.sh"
