#!/usr/bin/env bash
# Fine-tune a checkpoint on your own labelled pairs: data=FOLDER bash finetune.sh
# FOLDER has A, B and label, or train and val with A, B and label each. Without val, a fifth of the
# pairs is set aside for it. To begin, 20 pairs of 256 x 256 pixels are enough.
# change/experiments/finetune.toml holds the values. The result is best.pth in save_path.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

if [ -z "${data:-}" ]; then
  echo "error: name the folder of your pairs: data=FOLDER bash finetune.sh" >&2
  exit 2
fi
# Fine-tuning sets these itself.
unset root best_name resume continue_run

run_verb finetune "$data" "$@"
