#!/usr/bin/env bash
# What the steps of the recipe gain, on folds inside train: change/experiments/recipe.toml says how.
# root, lists, out, folds, test_amp and any option of train.py that no step sets can be set before
# the command or behind it. Interrupted, run it again: it goes on. Other settings need another out.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

# The experiment sets these itself.
unset recipe scale color_setting list save_path best_name resume checkpoint_path continue_run
unset data seeds

run_verb experiment "$repo/change/experiments/recipe.toml" "$@"
