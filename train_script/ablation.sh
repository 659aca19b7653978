#!/usr/bin/env bash
# What each part of the network is worth: change/experiments/ablation.toml says how.
# root, out, seeds, test_amp and any option of train.py that no arm sets can be set before the
# command or behind it. Interrupted, run it again: it goes on. Other settings need another out.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

# The experiment sets these itself.
unset model refine cross within seed save_path best_name resume checkpoint_path continue_run
unset data folds lists

run_verb experiment "$repo/change/experiments/ablation.toml" "$@"
