"""Print docs/options.md: `python -m change.options > docs/options.md`."""

from __future__ import annotations

import sys

from change.common.command_line import option_tables
from change.options.test import TestOptions
from change.options.train import TrainOptions


def options_page() -> str:
    """Return the text of docs/options.md."""
    return f"""# Options

Every option of `train.py` and `test.py`. This page is generated from `change/options`
(`python -m change.options > docs/options.md`) and checked by a test.

Booleans can be written `--cross`, `--no-cross`, `--cross=True` or `--cross=False`. An option that does nothing in the
chosen mode is an error. The commands of `python -m change VERB` list their options with `--help`.

## train.py

{option_tables(TrainOptions)}
## test.py

{option_tables(TestOptions).rstrip()}
"""


if __name__ == "__main__":
    sys.stdout.write(options_page())
