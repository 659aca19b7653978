#!/usr/bin/env bash
# Check style, types, spelling and scripts, and run the tests:
#
#   bash tests/run.sh           what CI runs: all tests but those marked rare
#   bash tests/run.sh quick     the same checks, and the tests that are not marked slow either
#   bash tests/run.sh all       everything
#
# Further arguments go to pytest. jobs=N runs the tests in N processes (default: 2); jobs=0 in one.
# It uses the interpreter in the variable python, else the active environment, else .venv, which it
# creates or completes. At the end, pytest says why tests were skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in
  quick) set -- -m "not slow and not rare" "${@:2}" ;;
  all) shift ;;
  *) set -- -m "not rare" "$@" ;;
esac
requirements=(requirements.txt requirements-geo.txt)
requirements+=(tests/requirements-onnx.txt tests/requirements.txt)
if [ -n "${python:-}" ]; then
  "$python" -m change.common.environment --check "${requirements[@]}"
else
  python="$(python3 -m change.common.environment "${requirements[@]}")"
fi
scripts="$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')"

"$python" -m ruff check .
"$python" -m ruff format --check .
# Types take more than a minute on one core: they are checked while the tests run.
"$python" -m mypy &
types=$!
"$python" -m codespell_lib
PATH="$scripts:$PATH" shellcheck -x train_script/*.sh test_script/*.sh tests/run.sh .ci/run

# One thread per process: results then agree to the last bit, and the processes share the cores.
export OMP_NUM_THREADS=1
failed=0
"$python" -m pytest -r fEs -n "${jobs:-2}" --dist worksteal "$@" || failed=$?
wait "$types" || failed=$?
exit "$failed"
