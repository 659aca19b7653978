#!/usr/bin/env bash
# Train the checkpoint for any change of cropland and land cover: fine-tune the weights for
# buildings on CLCD, as prepared by python -m change prepare, with the values of
# change/experiments/land.toml. The result is packed.pth in save_path. This script made
# checkpoints/land_r18.pth, in two and a half hours on one core.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

# Fine-tuning sets these itself.
unset data best_name resume continue_run
: "${root:=$repo/data/CLCD}"

run_verb finetune "$root" --settings "$repo/change/experiments/land.toml" "$@"
