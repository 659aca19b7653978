#!/usr/bin/env bash
# Measure what each step of the training recipe gains, on folds inside train, as described in
# change/experiments/recipe.toml.
# root, lists, out, folds, test_amp and any option of train.py that no step sets can be set before
# the command (epoch=20 bash recipe.sh) or after it (bash recipe.sh --epoch 20). After an
# interruption, run it again to continue. Use another out for other settings.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=run.sh
. "$here/run.sh"

# The experiment sets these itself.
unset recipe scale color_setting list save_path best_name resume checkpoint_path continue_run
unset data seeds

run_verb experiment "$repo/change/experiments/recipe.toml" "$@"
