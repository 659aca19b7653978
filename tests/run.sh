#!/usr/bin/env bash
# Style, types and tests. In an active environment it uses that one; else it makes .venv, once (about 5 GB: torch).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python3
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
  python=.venv/bin/python
  wanted="$(cat requirements.txt tests/requirements.txt)"
  if [ "$wanted" != "$(cat .venv/installed.txt 2>/dev/null)" ]; then
    echo "installing the requirements into .venv (about 5 GB)"
    python3 -m venv .venv
    "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
    echo "$wanted" > .venv/installed.txt
  fi
fi
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
exec "$python" -m pytest "$@"
