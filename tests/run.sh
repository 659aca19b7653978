#!/usr/bin/env bash
# Style, types and tests, in the active environment, or else in .venv, which is made once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -n "${python:-}" ] || python="$(python3 -m change.common.environment requirements.txt requirements-geo.txt tests/requirements.txt)"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
# Two processes with a thread each share the files of tests, most of whose time is the starting of programs; jobs=0: one.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m pytest -n "${jobs:-2}" --dist loadfile --no-loadscope-reorder "$@"
