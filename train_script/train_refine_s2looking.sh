#!/usr/bin/env bash
# Train pass 2 (refine) on S2Looking from 1.pth. The result is 2.pth in save_path.
# Train pass 3 (refine + cross) from 2.pth: cross=True bash train_refine_s2looking.sh
# The result is best.pth. checkpoint_path names other weights to start from.
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

start_from_pass_before

# train_s2looking.sh sets the data and all other values as in pass 1, and runs train.py.
# shellcheck source-path=SCRIPTDIR source=train_s2looking.sh
. "$here/train_s2looking.sh"
