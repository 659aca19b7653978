#!/usr/bin/env bash
# Style, types and tests, in the active environment, or else in .venv, which is made once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -n "${python:-}" ] || python="$(python3 -m change.environment requirements.txt tests/requirements.txt)"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
exec "$python" -m pytest "$@"
