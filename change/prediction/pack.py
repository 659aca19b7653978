"""Small checkpoints for publication: `python -m change pack CHECKPOINT OUT`.

The refinement heads, which prediction does not use, and the paths of the training machine are left out. Weights are
stored in 8 bits with a scale per output channel, which takes a quarter of the space; loading restores them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from change.common.errors import OneLineParser, UserError, list_names
from change.common.logs import start_logging

# Options of a pass that hold paths. `pretrained` may also be a name.
PATHS = ("root", "list", "save_path", "checkpoint_path", "cache_path", "continue_run")
PRETRAINED = ("imagenet", "none")

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Parse, load, write; return the exit code."""
    parser = OneLineParser(prog="python -m change pack", description="Write a small checkpoint for publication.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="weights: ours or published")
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write")
    given = parser.parse_args(arguments)
    from change.checkpoint import load_checkpoint  # here, because importing torch takes seconds

    start_logging()
    if given.out.exists():
        raise UserError(f"{given.out} already exists: choose another name, or remove it")
    whole = load_checkpoint(given.checkpoint)
    left_out = [name for name in whole.weights if name.startswith("refinement.")]
    kept = {name: tensor for name, tensor in whole.weights.items() if name not in left_out}
    lineage = [replace(record, options=without_paths(record.options)) for record in whole.lineage]
    config = replace(whole.config, refine=False)
    replace(whole, config=config, weights=kept, lineage=lineage).save(given.out, packed=True)
    log.info("%s: %.1f MB; left out: %s", given.out, given.out.stat().st_size / 1e6, list_names(left_out) or "nothing")
    return 0


def without_paths(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a pass without those that hold paths."""
    kept = {name: value for name, value in options.items() if name not in PATHS}
    if kept.get("pretrained", "none") not in PRETRAINED:
        del kept["pretrained"]
    return kept
