#!/usr/bin/env bash
# Train the checkpoint for buildings that appear or vanish: combine LEVIR-CD, MS-HS-BCD and
# synthetic scenes in root, and fine-tune weights from synthetic scenes on them, with the values of
# change/experiments/buildings.toml. The result is packed.pth in save_path. This script made
# checkpoints/buildings_r18.pth, in two hours on one core.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

# Fine-tuning sets these itself.
unset data best_name resume continue_run
log_environment python nproc levir ms_bcd count "${train_options[@]}"
: "${root:=$repo/data/buildings}"
: "${levir:=$repo/data/LEVIR-CD}"
: "${ms_bcd:=$repo/data/MS-HS-BCD}"
: "${count:=240}"

run_module change.experiments.buildings_data "$root" \
  --levir "$levir" --ms_bcd "$ms_bcd" --count "$count"
run_verb finetune "$root" --settings "$repo/change/experiments/buildings.toml" "$@"
