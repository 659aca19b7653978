#!/usr/bin/env bash
# Fine-tune a checkpoint on your own labelled pairs: data=FOLDER bash finetune.sh
# FOLDER has train and val, each with A, B and label; 20 pairs of 256 or more are enough to begin.
# change/experiments/finetune.toml holds the values. best.pth lands in save_path.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

if [ -z "${data:-}" ]; then
  echo "error: which pairs? data=FOLDER bash finetune.sh" >&2
  exit 2
fi
# Fine-tuning sets these itself.
unset root best_name resume continue_run

run_verb finetune "$data" "$@"
