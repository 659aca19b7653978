#!/usr/bin/env bash
# Measure what each part of the network contributes, as described in
# change/experiments/ablation.toml.
# root, out, seeds, test_amp and any option of train.py that no arm sets can be set before the
# command (swap=True bash ablation.sh) or after it (bash ablation.sh --swap). After an interruption,
# run it again to continue. Use another out for other settings.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

# The experiment sets these itself.
unset model refine cross within seed save_path best_name resume checkpoint_path continue_run
unset data folds lists

run_verb experiment "$repo/change/experiments/ablation.toml" "$@"
